//! The thread that owns the log. Writes that gather while it syncs are made durable by one sync
//! (group commit). Snapshots are written by threads of their own, so that they hold up no write.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::{LogStore, Snapshots, StoreError};
use crate::core::Persist;
use crate::state::{Frozen, Position};

/// Work for the disk.
pub(crate) enum Job {
    Persist(Persist),
    Snapshot {
        rows: Frozen,
        position: Position,
    },
    /// The snapshot is on disk: forget the entries up to `entries`.
    Compact {
        snapshot: u64,
        entries: u64,
    },
}

/// How it went.
pub(crate) enum Done {
    Persisted(u64),
    SnapshotTaken(Position),
    SnapshotFailed(StoreError),
    /// The log cannot be written: the node must stop.
    Failed(StoreError),
}

/// Handle of the writing thread; it ends when this is dropped and what was queued is written.
pub(crate) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

const BATCH_MAX: usize = 256;

impl Writer {
    /// `report` is called on the writer's threads. The queue of jobs has no bound of its own: the
    /// core never has more unwritten than its proposals in flight, which are bounded.
    pub(crate) fn start(
        log: impl LogStore + 'static,
        snapshots: Snapshots,
        report: impl Fn(Done) + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("sbc-log".to_owned())
            .spawn(move || run(log, &snapshots, &queue, report))?;
        Ok(Writer { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A writer that has failed has said so already.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the writer has nothing to add at this point.
            let _ = thread.join();
        }
    }
}

fn run(
    mut log: impl LogStore,
    snapshots: &Snapshots,
    queue: &Receiver<Job>,
    report: impl Fn(Done) + Clone + Send + 'static,
) {
    let mut batch: Vec<Persist> = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Persist(persist) => {
                    batch.push(persist);
                    if batch.len() < BATCH_MAX {
                        next = queue.try_recv().ok();
                    }
                }
                Job::Snapshot { rows, position } => {
                    let (snapshots, report) = (snapshots.clone(), report.clone());
                    write_snapshot(snapshots, rows, position, report);
                    next = queue.try_recv().ok();
                }
                Job::Compact { snapshot, entries } => {
                    if !commit(&mut log, &mut batch, &report) {
                        return;
                    }
                    if let Err(e) = log.compact(snapshot, entries) {
                        report(Done::Failed(e));
                        return;
                    }
                    snapshots.clean(snapshot);
                    next = queue.try_recv().ok();
                }
            }
        }
        if !commit(&mut log, &mut batch, &report) {
            return;
        }
    }
}

fn commit(log: &mut impl LogStore, batch: &mut Vec<Persist>, report: &impl Fn(Done)) -> bool {
    let Some(last) = batch.last().map(|persist| persist.number) else {
        return true;
    };
    match log.write(batch) {
        Ok(()) => {
            batch.clear();
            report(Done::Persisted(last));
            true
        }
        Err(e) => {
            report(Done::Failed(e));
            false
        }
    }
}

fn write_snapshot(
    snapshots: Snapshots,
    rows: Frozen,
    position: Position,
    report: impl Fn(Done) + Send + Clone + 'static,
) {
    let failed = report.clone();
    let spawned =
        std::thread::Builder::new().name("sbc-snapshot".to_owned()).spawn(move || match snapshots
            .save(&rows, &position)
        {
            Ok(_) => report(Done::SnapshotTaken(position)),
            Err(e) => report(Done::SnapshotFailed(e)),
        });
    if let Err(e) = spawned {
        failed(Done::SnapshotFailed(StoreError::io(std::path::Path::new("snapshots"), e)));
    }
}
