//! What handles and the kernel driver tell a relay thread.
//!
//! Letters gather in a vector that the thread swaps out; the lock is held for one push or one swap.
//! A thread that sleeps in epoll is woken, one that rests between batches is not: it looks soon.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::sys::Waker;
use crate::cells::StreamCell;
use crate::engine::Command;
use crate::events::EventSink;
use crate::plan_types::{FlowCounters, FlowId, FlowOutcome};
use crate::types::{InterfaceId, SessionId, Side, StreamKind};

/// Letters that wait; beyond it `try_post` refuses.
const LETTERS: usize = 65_536;

/// One message to a relay thread.
pub(crate) enum Letter {
    Command(Command),
    Bind(Box<NewSide>),
    Sink {
        shard: usize,
        sink: EventSink,
    },
    Outcomes(Vec<FlowOutcome>),
    Counters(Vec<(FlowId, FlowCounters)>),
    /// The kernel driver has ended.
    KernelGone,
    Stop,
}

/// A bound side on its way to its relay thread.
pub(crate) struct NewSide {
    pub(crate) id: SessionId,
    pub(crate) stream: u8,
    pub(crate) kind: StreamKind,
    pub(crate) side: Side,
    pub(crate) interface: InterfaceId,
    pub(crate) rtp: SocketAddr,
    pub(crate) dscp: Option<u8>,
    pub(crate) rtp_socket: OwnedFd,
    pub(crate) rtcp_socket: Option<OwnedFd>,
    pub(crate) cell: Arc<StreamCell>,
}

/// The mailbox of one relay thread.
pub(crate) struct Mailbox {
    letters: Mutex<Vec<Letter>>,
    sleeping: AtomicBool,
    waker: Waker,
}

impl Mailbox {
    pub(crate) fn new() -> std::io::Result<Mailbox> {
        Ok(Mailbox {
            letters: Mutex::new(Vec::new()),
            sleeping: AtomicBool::new(false),
            waker: Waker::new()?,
        })
    }

    /// Posts a letter that must arrive (it frees something, or its number is bounded by sessions).
    pub(crate) fn post(&self, letter: Letter) {
        self.lock().push(letter);
        self.wake();
    }

    /// Posts a letter unless too many wait.
    pub(crate) fn try_post(&self, letter: Letter) -> Result<(), Letter> {
        let mut letters = self.lock();
        if letters.len() >= LETTERS {
            return Err(letter);
        }
        letters.push(letter);
        drop(letters);
        self.wake();
        Ok(())
    }

    /// All letters that wait.
    pub(crate) fn take(&self) -> Vec<Letter> {
        std::mem::take(&mut *self.lock())
    }

    /// Announces that the thread will sleep; for how long it may.
    pub(crate) fn sleep(&self, idle: Duration) -> Duration {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.lock().is_empty() { idle } else { Duration::ZERO }
    }

    /// The thread is awake: letters need no wake any more.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Letter>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
