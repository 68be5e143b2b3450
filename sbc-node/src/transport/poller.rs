//! A thin epoll wrapper: level-triggered readiness under a `u64` token (wakers: edge-triggered). No
//! policy lives here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Interest = Interest { read: true, write: false };

    fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags
    }
}

/// One descriptor that became ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    pub read: bool,
    pub write: bool,
    /// `EPOLLERR` or `EPOLLHUP`: the error is on the socket.
    pub error: bool,
}

/// The readiness of a set of descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    buffer: Vec<EpollEvent>,
}

impl Poller {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Poller { epoll, buffer: vec![EpollEvent::empty(); 256] })
    }

    /// Watches `fd` under `token`.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(interest.flags(), token))?)
    }

    /// Watches a waker: every wake is told once, and nothing has to be read to be told of the next.
    pub fn add_waker(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token))?)
    }

    /// Changes what `fd` is watched for.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = EpollEvent::new(interest.flags(), token);
        Ok(self.epoll.modify(fd, &mut event)?)
    }

    /// Stops watching `fd`; closing it does the same.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits for readiness, at most `timeout` (rounded up to a millisecond), and fills `ready`.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(d) => {
                let ms = d.as_nanos().div_ceil(1_000_000).min(60_000);
                EpollTimeout::from(u16::try_from(ms).unwrap_or(60_000))
            }
        };
        let count = match self.epoll.wait(&mut self.buffer, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        ready.extend(self.buffer.iter().take(count).map(|event| {
            let flags = event.events();
            Ready {
                token: event.data(),
                read: flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP),
                write: flags.contains(EpollFlags::EPOLLOUT),
                error: flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP),
            }
        }));
        Ok(())
    }
}

/// Wakes a poller from another thread.
#[derive(Debug)]
pub struct Waker(EventFd);

impl Waker {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Waker> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Waker(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Wakes the poller that watches it. The counter is never read: it is full after 2^64 wakes.
    pub fn wake(&self) {
        if let Err(error) = self.0.write(1) {
            tracing::error!(%error, fd = self.0.as_raw_fd(), "cannot wake a shard");
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
