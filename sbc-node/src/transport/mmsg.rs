//! `recvmmsg`, `sendmmsg` and the error queue: the only unsafe code of the signalling path.
//!
//! Buffers are made once per shard and lent to one socket after the other.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::RawFd;

use bytes::Bytes;

/// Datagrams taken or given per system call.
pub const BATCH: usize = 64;
/// Largest UDP payload.
const DATAGRAM_BYTES: usize = 65_536;
/// From one buffer to the next. Were it a power of two, the beginnings of all buffers, which is what
/// messages fill, would fall into the same few sets of every cache.
const STRIDE_BYTES: usize = DATAGRAM_BYTES + 2_112;
const CONTROL_BYTES: usize = 128;

/// Aligned room for control messages.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Reusable room for one `recvmmsg`.
pub struct RecvBatch {
    data: Box<[u8]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the raw pointers in `headers` and `iovecs` are written by `aim` right before each system
// call and never used outside of it; nothing is tied to a thread.
unsafe impl Send for RecvBatch {}

/// One datagram of a batch.
#[derive(Debug)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    pub data: &'a [u8],
    /// Datagrams that the kernel dropped on this socket so far (`SO_RXQ_OVFL`), when it says so.
    pub dropped: Option<u32>,
}

impl Default for RecvBatch {
    fn default() -> Self {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (name, header): (libc::sockaddr_storage, libc::mmsghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let null = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        RecvBatch {
            data: vec![0; STRIDE_BYTES * BATCH].into_boxed_slice(),
            names: vec![name; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL_BYTES]); BATCH].into_boxed_slice(),
            iovecs: vec![null; BATCH].into_boxed_slice(),
            headers: vec![header; BATCH].into_boxed_slice(),
        }
    }
}

impl RecvBatch {
    /// Takes what waits on `fd`, at most [`BATCH`] datagrams, and gives each to `each`. Returns
    /// how many there were; 0 when nothing waits.
    ///
    /// # Errors
    /// What the system says, except that it would block.
    pub fn receive(&mut self, fd: RawFd, mut each: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
        self.aim();
        // SAFETY: every header points into buffers of `self` that live through the call.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                u32::try_from(BATCH).unwrap_or(1),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        for ((header, name), data) in
            self.headers.iter().zip(&self.names).zip(self.data.chunks(STRIDE_BYTES)).take(count)
        {
            let length = usize::try_from(header.msg_len).unwrap_or(0);
            let (Some(from), Some(data)) = (from_storage(name), data.get(..length)) else {
                continue;
            };
            each(Datagram { from, data, dropped: overflow(&header.msg_hdr) });
        }
        Ok(count)
    }

    /// Points every header at its buffers; the kernel overwrites the lengths each time.
    fn aim(&mut self) {
        let slots = self
            .headers
            .iter_mut()
            .zip(&mut self.iovecs)
            .zip(&mut self.names)
            .zip(&mut self.controls)
            .zip(self.data.chunks_mut(STRIDE_BYTES));
        for ((((header, iovec), name), control), data) in slots {
            iovec.iov_base = data.as_mut_ptr().cast();
            iovec.iov_len = data.len().min(DATAGRAM_BYTES);
            let hdr = &mut header.msg_hdr;
            hdr.msg_name = std::ptr::from_mut(name).cast();
            hdr.msg_namelen = name_length::<libc::sockaddr_storage>();
            hdr.msg_iov = std::ptr::from_mut(iovec);
            hdr.msg_iovlen = 1;
            hdr.msg_control = control.0.as_mut_ptr().cast();
            hdr.msg_controllen = CONTROL_BYTES;
            hdr.msg_flags = 0;
        }
    }

    /// Takes one entry off the error queue: who could not be reached, why (errno), and how our
    /// datagram began. `None` when the queue is empty.
    pub fn receive_error(&mut self, fd: RawFd) -> Option<(SocketAddr, i32, &[u8])> {
        self.aim();
        let header = &mut self.headers.first_mut()?.msg_hdr;
        // SAFETY: the header points into buffers of `self` that live through the call.
        let length = unsafe { libc::recvmsg(fd, header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
        let length = usize::try_from(length).ok()?;
        let errno = extended_error(header).unwrap_or(libc::EHOSTUNREACH);
        let to = from_storage(self.names.first()?)?;
        Some((to, errno, self.data.get(..length)?))
    }
}

/// Reusable room for one `sendmmsg`.
pub struct SendBatch {
    names: Box<[libc::sockaddr_storage]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: as for `RecvBatch`: `send` writes every pointer that its system call follows.
unsafe impl Send for SendBatch {}

impl Default for SendBatch {
    fn default() -> Self {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (name, header): (libc::sockaddr_storage, libc::mmsghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let null = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        SendBatch {
            names: vec![name; BATCH].into_boxed_slice(),
            iovecs: vec![null; BATCH].into_boxed_slice(),
            headers: vec![header; BATCH].into_boxed_slice(),
        }
    }
}

impl SendBatch {
    /// Sends the datagrams of `items` in order, at most [`BATCH`]; returns how many left.
    ///
    /// # Errors
    /// What the system says of the first one that did not leave, when none did.
    pub fn send<'a>(
        &mut self,
        fd: RawFd,
        items: impl Iterator<Item = (SocketAddr, &'a Bytes)>,
    ) -> io::Result<usize> {
        let mut filled = 0_u32;
        let slots = self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.names);
        for (((header, iovec), name), (to, data)) in slots.zip(items) {
            // The kernel only reads through this pointer.
            iovec.iov_base = data.as_ptr().cast_mut().cast();
            iovec.iov_len = data.len();
            header.msg_hdr.msg_namelen = to_storage(to, name);
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_iov = std::ptr::from_mut(iovec);
            header.msg_hdr.msg_iovlen = 1;
            filled += 1;
        }
        if filled == 0 {
            return Ok(0);
        }
        // SAFETY: the first `filled` headers point at names and vectors of `self` and at the
        // bytes lent by `items`, all of which live through the call.
        let sent =
            unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), filled, libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn name_length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

/// Writes `addr` in its C form; returns its length.
fn to_storage(addr: SocketAddr, storage: &mut libc::sockaddr_storage) -> libc::socklen_t {
    match addr {
        SocketAddr::V4(v4) => {
            let c = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is as large and as aligned as any sockaddr.
            unsafe { std::ptr::from_mut(storage).cast::<libc::sockaddr_in>().write(c) };
            name_length::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let c = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::from_mut(storage).cast::<libc::sockaddr_in6>().write(c) };
            name_length::<libc::sockaddr_in6>()
        }
    }
}

/// Reads an address in its C form; `None` for other families.
fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a sockaddr_in.
            let c = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(c.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(c.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage holds a sockaddr_in6.
            let c = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(c.sin6_addr.s6_addr);
            // A scope only means something for link-local addresses, and a flow label never
            // names a peer: both would make two values of one address.
            let scope = if ip.is_unicast_link_local() { c.sin6_scope_id } else { 0 };
            let port = u16::from_be(c.sin6_port);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)))
        }
        _ => None,
    }
}

/// The payload of the first control message of a wanted (level, type).
fn control<T: Copy>(header: &libc::msghdr, wanted: &[(i32, i32)]) -> Option<T> {
    // SAFETY: the kernel filled `msg_control` up to `msg_controllen`; the CMSG macros stay inside,
    // and a message of a wanted kind carries a T.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(header);
        while let Some(head) = cmsg.as_ref() {
            if wanted.contains(&(head.cmsg_level, head.cmsg_type)) {
                return Some(libc::CMSG_DATA(cmsg).cast::<T>().read_unaligned());
            }
            cmsg = libc::CMSG_NXTHDR(header, cmsg);
        }
    }
    None
}

fn overflow(header: &libc::msghdr) -> Option<u32> {
    control(header, &[(libc::SOL_SOCKET, libc::SO_RXQ_OVFL)])
}

fn extended_error(header: &libc::msghdr) -> Option<i32> {
    let kinds = [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)];
    let error: libc::sock_extended_err = control(header, &kinds)?;
    i32::try_from(error.ee_errno).ok()
}
