//! A netlink socket: non-blocking receive, large buffers where allowed.
//!
//! The kernel handles a request inside `sendto`, so that its replies wait in the receive queue
//! when the call returns: nothing here ever sleeps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};

use super::{Messages, MsgBuf};

/// The netlink families in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    Route,
    Netfilter,
}

/// Why nothing more was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvError {
    /// The queue is empty.
    Empty,
    /// The kernel dropped messages for want of room (ENOBUFS): what they said is unknown.
    Overrun,
    Errno(Errno),
}

/// One socket with its receive buffer.
pub(crate) struct NetlinkSocket {
    fd: OwnedFd,
    buf: Vec<u8>,
    seq: u32,
}

/// Bytes of one receive; the kernel fills dumps up to 32 KiB.
const RECV_LEN: usize = 64 * 1024;
/// Socket buffers asked for; clipped to `net.core.[rw]mem_max` without CAP_NET_ADMIN on the host.
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;

const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;

/// Switches a netlink option on; older kernels lack some, which costs only detail in errors.
fn set_netlink_option(fd: &OwnedFd, option: libc::c_int) {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).expect("4");
    // SAFETY: the value is a c_int that lives across the call, and `len` is its size.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), len)
    };
    if result != 0 {
        tracing::debug!(option, "netlink option not supported");
    }
}

impl NetlinkSocket {
    /// Opens a socket in the calling thread's network namespace, listening to `groups`
    /// (bit n-1 for group n).
    pub(crate) fn open(bus: Bus, groups: u32) -> io::Result<Self> {
        let protocol = match bus {
            Bus::Route => SockProtocol::NetlinkRoute,
            Bus::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // Forced sizes need CAP_NET_ADMIN in the first user namespace: a pod or a test gets what
        // the sysctls allow, and batches are split when that is too little.
        if setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&fd, sockopt::SndBuf, &SOCKET_BUFFER)?;
        }
        if setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &SOCKET_BUFFER)?;
        }
        // Errors name the attribute that was refused and don't repeat the request.
        for option in [NETLINK_EXT_ACK, NETLINK_CAP_ACK] {
            set_netlink_option(&fd, option);
        }
        Ok(NetlinkSocket { fd, buf: vec![0; RECV_LEN], seq: 0 })
    }

    /// The next sequence number; never 0.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends everything in `msgs` as one datagram: one transaction for nf_tables.
    pub(crate) fn send(&self, msgs: &MsgBuf) -> Result<(), Errno> {
        self.send_bytes(msgs.bytes())
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8]) -> Result<(), Errno> {
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    /// Receives one datagram.
    pub(crate) fn recv(&mut self) -> Result<Messages<'_>, RecvError> {
        let got = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buf, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        match got {
            Ok(len) => Ok(Messages::new(self.buf.get(..len).unwrap_or(&[]))),
            Err(Errno::EAGAIN) => Err(RecvError::Empty),
            Err(Errno::ENOBUFS) => Err(RecvError::Overrun),
            Err(errno) => Err(RecvError::Errno(errno)),
        }
    }

    /// Throws away what is queued (after a failed exchange).
    pub(crate) fn drain(&mut self) {
        while !matches!(self.recv(), Err(RecvError::Empty | RecvError::Errno(_))) {}
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
