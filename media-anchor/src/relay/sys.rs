//! The system calls of the relay: bound non-blocking UDP sockets, epoll, eventfd.
//!
//! Everything unsafe of the userspace relay is here; no media logic.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

/// A datagram that was received.
pub(crate) struct Received {
    pub(crate) src: SocketAddr,
    /// Its real length; longer than the buffer when it was cut.
    pub(crate) len: usize,
}

/// A socket address in the kernel's form.
#[derive(Clone, Copy)]
pub(crate) union RawAddr {
    storage: sockaddr_in6,
    v4: sockaddr_in,
    v6: sockaddr_in6,
}

impl RawAddr {
    /// The kernel's form of `addr` and its length.
    pub(crate) fn new(addr: SocketAddr) -> (RawAddr, socklen_t) {
        match addr {
            SocketAddr::V4(addr) => {
                let v4 = sockaddr_in {
                    sin_family: AF_INET,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                    sin_zero: [0; 8],
                };
                let mut raw = RawAddr::empty();
                raw.v4 = v4;
                (raw, socklen::<sockaddr_in>())
            }
            SocketAddr::V6(addr) => {
                let v6 = sockaddr_in6 {
                    sin6_family: AF_INET6,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                (RawAddr { v6 }, socklen::<sockaddr_in6>())
            }
        }
    }

    /// An address to be filled in.
    pub(crate) fn empty() -> RawAddr {
        // SAFETY: sockaddr_in6 is plain data, all zeroes is a value of it.
        RawAddr { storage: unsafe { MaybeUninit::zeroed().assume_init() } }
    }

    /// The address the kernel wrote; `None` for other families.
    pub(crate) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: the family is at the same place in both and all bytes are initialised.
        match unsafe { self.v4.sin_family } {
            AF_INET => {
                // SAFETY: as above, the family says that it is a sockaddr_in.
                let v4 = unsafe { self.v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
            }
            AF_INET6 => {
                // SAFETY: as above, the family says that it is a sockaddr_in6.
                let v6 = unsafe { self.v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id)))
            }
            _ => None,
        }
    }

    pub(crate) fn as_ptr(&self) -> *const sockaddr {
        ptr::from_ref(self).cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut sockaddr {
        ptr::from_mut(self).cast()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
const AF_INET: u16 = libc::AF_INET as u16;
#[expect(clippy::cast_possible_truncation, reason = "AF_INET6 is 10")]
const AF_INET6: u16 = libc::AF_INET6 as u16;

#[expect(clippy::cast_possible_truncation, reason = "sizes of socket addresses and ints")]
const fn socklen<T>() -> socklen_t {
    size_of::<T>() as socklen_t
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A non-blocking UDP socket bound to `addr`; IPv6 sockets take no IPv4. With `free_bind` the
/// address need not be there yet.
pub(crate) fn bound_socket(
    addr: SocketAddr,
    dscp: Option<u8>,
    free_bind: bool,
) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers; the descriptor it returns is ours alone.
    let fd = unsafe { OwnedFd::from_raw_fd(check(libc::socket(family, kind, 0))?) };
    if addr.is_ipv6() {
        set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    if free_bind {
        match addr {
            SocketAddr::V4(_) => set_option(&fd, libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?,
            SocketAddr::V6(_) => set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?,
        }
    }
    if let Some(dscp) = dscp {
        let class = c_int::from(dscp & 0x3f) << 2;
        if addr.is_ipv4() {
            set_option(&fd, libc::IPPROTO_IP, libc::IP_TOS, class)?;
        } else {
            set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class)?;
        }
    }
    let (raw, len) = RawAddr::new(addr);
    // SAFETY: `raw` is a socket address of `len` bytes that outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr(), len) })?;
    Ok(fd)
}

fn set_option(fd: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let value_ptr = ptr::from_ref(&value).cast::<c_void>();
    // SAFETY: the value is an int that outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value_ptr, socklen::<c_int>()) })
        .map(drop)
}

/// One datagram, or `None` when there is none. Errors that a peer caused (ICMP) are swallowed.
pub(crate) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut raw = RawAddr::empty();
    let mut raw_len = socklen::<sockaddr_in6>();
    // SAFETY: buffer and address are writable for the lengths given.
    let got = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            raw.as_mut_ptr(),
            &raw mut raw_len,
        )
    };
    match usize::try_from(got) {
        Ok(len) => Ok(raw.get().map(|src| Received { src, len })),
        Err(_) => {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error),
            }
        }
    }
}

/// Sends one datagram.
pub(crate) fn send(fd: &OwnedFd, data: &[u8], to: SocketAddr) -> io::Result<()> {
    let (raw, len) = RawAddr::new(to);
    // SAFETY: data and address are readable for the lengths given.
    let sent = unsafe {
        libc::sendto(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), 0, raw.as_ptr(), len)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An epoll instance.
pub(crate) struct Poller {
    fd: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        // SAFETY: epoll_create1 takes no pointers; the descriptor it returns is ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Poller { fd })
    }

    /// Watches `fd` for input, level-triggered; closing it ends that.
    pub(crate) fn add(&self, fd: &OwnedFd, key: u64) -> io::Result<()> {
        self.watch(fd, libc::EPOLLIN, key)
    }

    /// Watches a waker: every wake is told once, and nothing has to be read to be told of the next.
    pub(crate) fn add_waker(&self, waker: &Waker, key: u64) -> io::Result<()> {
        self.watch(&waker.fd, libc::EPOLLIN | libc::EPOLLET, key)
    }

    fn watch(&self, fd: &OwnedFd, events: c_int, key: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: key };
        let (epoll, fd) = (self.fd.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the event outlives the call.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Fills `events` with what is ready, waiting for at most `timeout`.
    pub(crate) fn wait<'a>(
        &self,
        events: &'a mut [libc::epoll_event],
        timeout: Duration,
    ) -> io::Result<&'a [libc::epoll_event]> {
        let capacity = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: `events` is writable for `capacity` entries.
        let ready = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), capacity, timeout_ms)
        };
        match check(ready) {
            Ok(ready) => {
                Ok(usize::try_from(ready).ok().and_then(|n| events.get(..n)).unwrap_or_default())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}

/// Wakes a thread that sleeps in [`Poller::wait`].
pub(crate) struct Waker {
    fd: OwnedFd,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Waker> {
        let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
        // SAFETY: eventfd takes no pointers; the descriptor it returns is ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, flags))?) };
        Ok(Waker { fd })
    }

    pub(crate) fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are readable. The counter is never read: it is full after 2^64 wakes.
        unsafe { libc::write(self.fd.as_raw_fd(), ptr::from_ref(&one).cast(), size_of::<u64>()) };
    }
}

// `sockaddr_storage` is never smaller than what RawAddr holds; recvfrom is told the smaller size.
const _: () = assert!(size_of::<RawAddr>() <= size_of::<sockaddr_storage>());
