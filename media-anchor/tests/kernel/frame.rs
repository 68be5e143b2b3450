//! Frames: captured and made by hand, with their checksums.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Ns;

/// Of a machine that is not there.
pub(crate) const MAC_OTHER: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// A packet socket on one device.
pub(crate) struct Tap {
    fd: OwnedFd,
}

impl Tap {
    pub(crate) fn open(ns: &Ns, device: &str) -> Tap {
        let fd = ns.run(|| {
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .expect("packet socket");
            let index = nix::net::if_::if_nametoindex(device).expect("device");
            // SAFETY: an all-zero sockaddr_ll is valid; the kernel reads as much as its size says.
            let bound = unsafe {
                let mut addr: libc::sockaddr_ll = std::mem::zeroed();
                addr.sll_family = u16::try_from(libc::AF_PACKET).expect("17");
                addr.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("3").to_be();
                addr.sll_ifindex = i32::try_from(index).expect("small");
                let len = libc::socklen_t::try_from(size_of_val(&addr)).expect("20");
                libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len)
            };
            assert_eq!(bound, 0, "bind to {device}");
            fd
        });
        let wait = TimeVal::new(2, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait).expect("timeout");
        Tap { fd }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty()).expect("send a frame");
        assert_eq!(sent, frame.len());
    }

    /// The next UDP datagram to `port` that arrives; `None` after two seconds.
    pub(crate) fn next_udp(&self, port: u16) -> Option<Packet> {
        let until = std::time::Instant::now() + Duration::from_secs(2);
        let mut buf = [0; 4096];
        while std::time::Instant::now() < until {
            let len = recv(self.fd.as_raw_fd(), &mut buf, MsgFlags::empty()).ok()?;
            if let Some(packet) = Packet::parse(&buf[..len]).filter(|p| p.dport == port) {
                return Some(packet);
            }
        }
        None
    }
}

/// What is checked of a captured packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) v6: bool,
    pub(crate) ttl: u8,
    pub(crate) dscp: u8,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) udp_checksum: u16,
    /// Identification, then flags and fragment offset, of IPv4.
    pub(crate) fragment: [u16; 2],
    /// IP header and UDP checksums hold (an absent UDP checksum over IPv4 does).
    pub(crate) checksums_hold: bool,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Packet> {
        let ip = frame.get(14..)?;
        let (v6, header, ttl, dscp, addresses) = match (frame[12], frame[13], ip.first()? >> 4) {
            (8, 0, 4) if ip[9] == 17 => (false, 20, ip[8], ip[1] >> 2, &ip[12..20]),
            (0x86, 0xdd, 6) if ip[6] == 17 => {
                let class = ip[0] << 4 | ip[1] >> 4;
                (true, 40, ip[7], class >> 2, &ip[8..40])
            }
            _ => return None,
        };
        let udp = ip.get(header..)?;
        let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        let udp = udp.get(..len)?;
        let checksum = u16::from_be_bytes([udp[6], udp[7]]);
        let len16 = u16::try_from(len).ok()?.to_be_bytes();
        let udp_sum = sum(&[addresses, &[0, 17], &len16, udp]);
        let udp_holds = (checksum == 0 && !v6) || udp_sum == 0xffff;
        let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
        let ip_holds = v6 || sum(&[&ip[..20]]) == 0xffff;
        Some(Packet {
            v6,
            ttl,
            dscp,
            sport: u16::from_be_bytes([udp[0], udp[1]]),
            dport: u16::from_be_bytes([udp[2], udp[3]]),
            udp_checksum: checksum,
            fragment: if v6 { [0; 2] } else { [word(4), word(6)] },
            checksums_hold: udp_holds && ip_holds,
            payload: udp[8..].to_vec(),
        })
    }
}

/// The one's complement sum of 16-bit words; the pieces are of even length but the last.
fn sum(pieces: &[&[u8]]) -> u16 {
    let mut total: u32 = 0;
    for word in pieces.concat().chunks(2) {
        total += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded")
}

/// An IPv4 UDP datagram as a frame.
pub(crate) struct Frame {
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src_mac: [u8; 6],
    pub(crate) src: (Ipv4Addr, u16),
    pub(crate) dst: (Ipv4Addr, u16),
    /// Flags and fragment offset.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) with_checksum: bool,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let udp_len = u16::try_from(8 + self.payload.len()).expect("short");
        let mut ip = vec![0x45, 0];
        ip.extend((20 + udp_len).to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, 17, 0, 0]);
        ip.extend(self.src.0.octets());
        ip.extend(self.dst.0.octets());
        let header_sum = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&header_sum.to_be_bytes());
        let mut udp = Vec::new();
        udp.extend(self.src.1.to_be_bytes());
        udp.extend(self.dst.1.to_be_bytes());
        udp.extend(udp_len.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        if self.with_checksum {
            let value = !sum(&[&ip[12..20], &[0, 17], &udp_len.to_be_bytes(), &udp]);
            udp[6..8].copy_from_slice(&value.to_be_bytes());
        }
        [&self.dst_mac[..], &self.src_mac, &[8, 0], &ip, &udp].concat()
    }
}
