//! The bounded way into a shard from other threads: two queues (control, messages) and one wake.
//!
//! Nothing here waits: a sender that finds a queue full gets its item back and says so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::Bytes;
use sbc_core::core::SendToken;
use sbc_core::net::Flow;

use super::command::Command;
use crate::transport::poller::Waker;
use crate::transport::udp::Unreached;

/// Messages that may wait for a shard.
pub const MESSAGES_MAX: usize = 16_384;
/// Commands that may wait for a shard.
pub const CONTROL_MAX: usize = 8_192;

/// A message that another shard received or has to send.
#[derive(Debug)]
pub enum Parcel {
    /// Received by another shard, for a call of this one.
    Received { flow: Flow, data: Bytes },
    /// To be written on a connection that this shard owns; a failure goes back to shard `from`.
    Transmit { flow: Flow, data: Bytes, token: Option<SendToken>, from: u8 },
    /// A connection that brought messages to the shard is gone. It comes behind them: they may be what
    /// the peer said last.
    Closed(Flow),
    /// An ICMP error that is about nothing that the shard sent which was told.
    Unreached(Unreached),
}

#[derive(Debug)]
struct Shared {
    waker: Waker,
    awake: AtomicBool,
}

/// The sending ends of a shard's queues.
pub struct Handle<M> {
    control: SyncSender<Command<M>>,
    messages: SyncSender<Parcel>,
    shared: Arc<Shared>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle {
            control: self.control.clone(),
            messages: self.messages.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The shard's own end.
pub struct Mailbox<M> {
    control: Receiver<Command<M>>,
    messages: Receiver<Parcel>,
    shared: Arc<Shared>,
}

/// Makes the queues of one shard.
///
/// # Errors
/// When the process is out of descriptors.
pub fn mailbox<M>() -> io::Result<(Handle<M>, Mailbox<M>)> {
    mailbox_with(CONTROL_MAX, MESSAGES_MAX)
}

/// As [`mailbox`], with room for so many items.
pub fn mailbox_with<M>(control: usize, messages: usize) -> io::Result<(Handle<M>, Mailbox<M>)> {
    let shared = Arc::new(Shared { waker: Waker::new()?, awake: AtomicBool::new(false) });
    let (control_tx, control_rx) = sync_channel(control);
    let (messages_tx, messages_rx) = sync_channel(messages);
    let handle = Handle { control: control_tx, messages: messages_tx, shared: Arc::clone(&shared) };
    Ok((handle, Mailbox { control: control_rx, messages: messages_rx, shared }))
}

impl<M> Handle<M> {
    /// Queues a command and wakes the shard.
    ///
    /// # Errors
    /// Gives the command back when the queue is full or the shard is gone.
    #[expect(clippy::result_large_err, reason = "given back by value and handled at once")]
    pub fn command(&self, command: Command<M>) -> Result<(), Command<M>> {
        match self.control.try_send(command) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => Err(command),
        }
    }

    /// Queues a message without waking the shard: a batch is followed by one [`wake`](Self::wake).
    ///
    /// # Errors
    /// Gives the message back when the queue is full or the shard is gone.
    #[expect(clippy::result_large_err, reason = "given back by value and handled at once")]
    pub fn parcel(&self, parcel: Parcel) -> Result<(), Parcel> {
        match self.messages.try_send(parcel) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(parcel) | TrySendError::Disconnected(parcel)) => Err(parcel),
        }
    }

    /// Makes the shard look into its queues, with one system call for many wakes.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if !self.shared.awake.swap(true, Ordering::SeqCst) {
            self.shared.waker.wake();
        }
    }
}

impl<M> Mailbox<M> {
    /// To be called before the queues are emptied: from here on a sender wakes us anew.
    pub fn open(&self) {
        // A full barrier: the queues must not be looked into before a sender can see that it has
        // to wake us again, or its item would lie there until the next wake.
        self.shared.awake.swap(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Wakes ourselves again, for what is left over.
    pub fn again(&self) {
        if !self.shared.awake.swap(true, Ordering::AcqRel) {
            self.shared.waker.wake();
        }
    }

    pub fn next_command(&self) -> Option<Command<M>> {
        self.control.try_recv().ok()
    }

    pub fn next_parcel(&self) -> Option<Parcel> {
        self.messages.try_recv().ok()
    }
}

impl<M> AsFd for Mailbox<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.waker.as_fd()
    }
}
