//! Socket creation and options: reuse, buffers, DSCP, error and drop reporting.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::Settings;

/// A bound, non-blocking UDP socket that shares its address with the other shards, reports ICMP
/// errors on its error queue and counts what the kernel dropped.
///
/// # Errors
/// When the address cannot be bound.
pub fn udp_listener(local: SocketAddr, settings: &Settings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    common(&socket, local, settings)?;
    let fd = socket.as_raw_fd();
    buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, settings.udp_buffer_bytes)?;
    buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, settings.udp_buffer_bytes)?;
    set(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    if local.is_ipv4() {
        set(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
        // Let the path's routers fragment: a datagram that is too large for the policy went to TCP.
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    } else {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
    }
    free_bind(&socket, local, settings)?;
    socket.bind(&SockAddr::from(local))?;
    Ok(socket)
}

/// A bound, non-blocking UDP socket that shares its address with nobody and hears of no ICMP errors: they
/// would lie in its buffer until somebody took them.
///
/// # Errors
/// When the address cannot be bound.
pub fn udp_alone(local: SocketAddr, settings: &Settings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    dscp(&socket, local, settings.dscp)?;
    free_bind(&socket, local, settings)?;
    socket.bind(&SockAddr::from(local))?;
    Ok(socket)
}

/// A listening, non-blocking TCP socket that shares its address with the other shards.
///
/// # Errors
/// When the address cannot be bound.
pub fn tcp_listener(local: SocketAddr, settings: &Settings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    common(&socket, local, settings)?;
    socket.set_reuse_address(true)?;
    free_bind(&socket, local, settings)?;
    socket.bind(&SockAddr::from(local))?;
    socket.listen(1_024)?;
    Ok(socket)
}

/// Lets a standby listen on an address before it has it.
fn free_bind(socket: &Socket, local: SocketAddr, settings: &Settings) -> io::Result<()> {
    match (settings.free_bind, local) {
        (false, _) => Ok(()),
        (true, SocketAddr::V4(_)) => socket.set_freebind_v4(true),
        (true, SocketAddr::V6(_)) => socket.set_freebind_v6(true),
    }
}

/// Whether nobody else listens on `local`: `SO_REUSEPORT` would let a second node of the same user
/// share our addresses and take half of the traffic without a word.
///
/// # Errors
/// When the address cannot be bound for ourselves alone.
pub fn probe(local: SocketAddr, datagram: bool, settings: &Settings) -> io::Result<()> {
    let (kind, protocol) = match datagram {
        true => (Type::DGRAM, Protocol::UDP),
        false => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(local), kind, Some(protocol))?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of a run before, in TIME_WAIT, hinder nobody.
    socket.set_reuse_address(!datagram)?;
    free_bind(&socket, local, settings)?;
    socket.bind(&SockAddr::from(local))
}

/// A non-blocking TCP socket on its way to `remote`, from the address of the interface.
///
/// # Errors
/// When the connection fails at once; in progress is not an error.
pub fn tcp_connect(
    local: SocketAddr,
    remote: SocketAddr,
    settings: &Settings,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    dscp(&socket, local, settings.dscp)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&socket, settings)?;
    set(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    let mut from = local;
    from.set_port(0);
    free_bind(&socket, local, settings)?;
    socket.bind(&SockAddr::from(from))?;
    match socket.connect(&SockAddr::from(remote)) {
        Ok(()) => Ok(socket),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// Options of an accepted connection, which inherits DSCP from its listener.
pub fn tcp_accepted(socket: &Socket, settings: &Settings) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(socket, settings)
}

/// Lets the kernel find peers that are gone without a word.
fn keepalive(socket: &Socket, settings: &Settings) -> io::Result<()> {
    let Some(silence) = settings.tcp_keepalive else { return Ok(()) };
    let probe = (silence / 4).max(std::time::Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(silence).with_interval(probe).with_retries(4);
    socket.set_tcp_keepalive(&keepalive)
}

fn common(socket: &Socket, local: SocketAddr, settings: &Settings) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    dscp(socket, local, settings.dscp)
}

fn dscp(socket: &Socket, local: SocketAddr, dscp: u8) -> io::Result<()> {
    let tos = i32::from(dscp & 0x3f) << 2;
    let fd = socket.as_raw_fd();
    if local.is_ipv4() {
        set(fd, libc::IPPROTO_IP, libc::IP_TOS, tos)
    } else {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos)
    }
}

/// Asks for a buffer by force, and by right where the process lacks CAP_NET_ADMIN.
fn buffer(fd: RawFd, force: i32, plain: i32, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    match set(fd, libc::SOL_SOCKET, force, bytes) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => set(fd, libc::SOL_SOCKET, plain, bytes),
        other => other,
    }
}

fn set(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: `value` outlives the call and `length` is its size; the kernel only reads it.
    let done = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
