//! Putting transactions into the kernel: batching, and what is done when the kernel refuses.
//!
//! Which elements there should be is the planner's; how a commit is written is the backend's.
//!
//! A transaction (the changes of one call) is applied wholly or not at all; many of them share a
//! commit. When a commit is refused, nothing of it was applied, and the refused operation is mended
//! or its transaction taken out, until the rest goes through:
//!
//! | fault | what is done |
//! |---|---|
//! | `Missing` at a deletion | it is gone already: left out, counted |
//! | `Exists` at an addition | a stale element: deleted in the same commit, counted |
//! | `NoRoom` | the commit is halved, down to one transaction |
//! | `TableGone`, `Permission` | everything left fails; the caller rebuilds or gives up |
//! | others | the transaction fails, or the commit is halved to find it |

use hashbrown::HashSet;
use smallvec::SmallVec;

use super::backend::{Backend, CommitError, Fault, Op};
use super::element::Counters;

/// The changes of one call: both directions together.
pub(crate) type Tx = SmallVec<[Op; 4]>;

/// One entry per operation of the transaction: the final counters of a deletion that found its
/// element.
pub(crate) type TxDone = SmallVec<[Option<Counters>; 4]>;

/// Operations of one commit. Measured: no gain beyond a hundred, and the answers of two hundred
/// deletions fit the smallest default receive buffer.
const OPS_PER_COMMIT: usize = 200;

/// What had to be mended, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Deletions that found nothing.
    pub(crate) missing: u64,
    /// Additions that found an element in their place.
    pub(crate) stale: u64,
    /// Commits that had to be made smaller.
    pub(crate) split: u64,
}

/// Applies transactions to a backend.
#[derive(Default)]
pub(crate) struct Applier {
    pub(crate) mended: Mended,
}

/// What became of one attempt.
enum Attempt {
    Done,
    /// The transaction at this index fails; the others are tried again.
    Fail(usize, Fault),
    /// All fail.
    FailAll(Fault),
    /// Try fewer at once.
    Split,
}

impl Applier {
    /// One result per transaction, in order.
    pub(crate) fn run(
        &mut self,
        backend: &mut dyn Backend,
        txs: &[Tx],
    ) -> Vec<Result<TxDone, Fault>> {
        let mut results = Vec::with_capacity(txs.len());
        let mut ops_max = OPS_PER_COMMIT;
        let mut dead = None;
        while let Some(rest) = txs.get(results.len()..).filter(|rest| !rest.is_empty()) {
            if let Some(fault) = dead {
                results.push(Err(fault));
                continue;
            }
            let batch = &rest[..fitting(rest, ops_max)];
            let mut done: Vec<Result<TxDone, Fault>> =
                batch.iter().map(|tx| Ok(smallvec::smallvec![None; tx.len()])).collect();
            match self.settle(backend, batch, &mut done) {
                Settled::Done => results.extend(done),
                Settled::Smaller => {
                    self.mended.split += 1;
                    ops_max = (batch.iter().map(|tx| tx.len()).sum::<usize>() / 2).max(1);
                }
                Settled::Dead(fault) => dead = Some(fault),
            }
        }
        results
    }

    /// Commits a batch, mending or failing operations until the rest is through.
    fn settle(
        &mut self,
        backend: &mut dyn Backend,
        batch: &[Tx],
        done: &mut [Result<TxDone, Fault>],
    ) -> Settled {
        let mut fixes = Fixes::default();
        loop {
            match self.attempt(backend, batch, done, &mut fixes) {
                None => {}
                Some(Attempt::Done) => return Settled::Done,
                Some(Attempt::Fail(tx, fault)) => done[tx] = Err(fault),
                Some(Attempt::FailAll(fault)) => return Settled::Dead(fault),
                Some(Attempt::Split) => return Settled::Smaller,
            }
        }
    }

    /// One commit; `None` when an operation was mended and it is worth another.
    fn attempt(
        &mut self,
        backend: &mut dyn Backend,
        batch: &[Tx],
        done: &mut [Result<TxDone, Fault>],
        fixes: &mut Fixes,
    ) -> Option<Attempt> {
        let mut ops = Vec::new();
        // For each operation of the commit, its transaction and place; none for a mending one.
        let mut places = Vec::new();
        for (t, tx) in batch.iter().enumerate().filter(|(t, _)| done[*t].is_ok()) {
            for (o, op) in tx.iter().enumerate() {
                if fixes.gone.contains(&(t, o)) {
                    continue;
                }
                if let (Op::Add(element), true) = (op, fixes.stale.contains(&(t, o))) {
                    ops.push(Op::Delete(element.key));
                    places.push(None);
                }
                ops.push(*op);
                places.push(Some((t, o)));
            }
        }
        let mut counters = Vec::with_capacity(ops.len());
        let error = match backend.commit(&ops, &mut counters) {
            Ok(()) => {
                for (place, counted) in places.iter().zip(counters) {
                    if let Some((t, o)) = place
                        && let Ok(tx_done) = &mut done[*t]
                    {
                        tx_done[*o] = counted;
                    }
                }
                return Some(Attempt::Done);
            }
            Err(error) => error,
        };
        let alone = (ops.len() == 1).then_some(0);
        let Some(at) = error.at.or(alone).and_then(|at| Some((*ops.get(at)?, *places.get(at)?)))
        else {
            return Some(unlocated(error, done));
        };
        self.mend(error.fault, at, done, fixes)
    }

    fn mend(
        &mut self,
        fault: Fault,
        (op, place): (Op, Option<(usize, usize)>),
        done: &[Result<TxDone, Fault>],
        fixes: &mut Fixes,
    ) -> Option<Attempt> {
        let Some((t, o)) = place else {
            // The element that stood in the way has gone meanwhile: look again.
            fixes.stale.clear();
            fixes.rounds += 1;
            return (fixes.rounds > 3).then_some(Attempt::Split);
        };
        match (fault, op) {
            (Fault::Missing, Op::Delete(_)) => {
                self.mended.missing += 1;
                fixes.gone.insert((t, o));
                None
            }
            (Fault::Exists, Op::Add(_)) if fixes.stale.insert((t, o)) => {
                self.mended.stale += 1;
                None
            }
            (Fault::TableGone | Fault::Permission, _) => Some(Attempt::FailAll(fault)),
            (Fault::NoRoom, _) if done.iter().filter(|d| d.is_ok()).count() > 1 => {
                Some(Attempt::Split)
            }
            _ => Some(Attempt::Fail(t, fault)),
        }
    }
}

enum Settled {
    Done,
    Smaller,
    Dead(Fault),
}

#[derive(Default)]
struct Fixes {
    /// Deletions to leave out.
    gone: HashSet<(usize, usize)>,
    /// Additions whose place is cleared first.
    stale: HashSet<(usize, usize)>,
    rounds: u32,
}

/// How many transactions make a commit of at most `ops_max` operations; at least one.
fn fitting(txs: &[Tx], ops_max: usize) -> usize {
    let mut ops = 0;
    let fits = |tx: &&Tx| {
        ops += tx.len();
        ops <= ops_max
    };
    txs.iter().take_while(fits).count().max(1)
}

/// A refusal that names no operation.
fn unlocated(error: CommitError, done: &[Result<TxDone, Fault>]) -> Attempt {
    let mut living = done.iter().enumerate().filter(|(_, d)| d.is_ok()).map(|(t, _)| t);
    match (error.fault, living.next(), living.next()) {
        (Fault::TableGone | Fault::Permission, _, _) | (_, None, _) => {
            Attempt::FailAll(error.fault)
        }
        (fault, Some(only), None) => Attempt::Fail(only, fault),
        (_, Some(_), Some(_)) => Attempt::Split,
    }
}
