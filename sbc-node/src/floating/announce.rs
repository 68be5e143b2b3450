//! Telling the segment where an address lives now: gratuitous ARP (RFC 5227 §3) for IPv4, an
//! unsolicited neighbour advertisement (RFC 4861 §7.2.6) for IPv6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETHERNET_BROADCAST: [u8; 6] = [0xff; 6];
/// The group of all nodes on the link, ff02::1, as an Ethernet address (RFC 2464 §7).
const ETHERNET_ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Sends announcements. The socket is opened once: closing a packet socket waits for every other
/// processor to have let go of it, tens of milliseconds that a takeover does not have.
pub(super) struct Announcer {
    socket: OwnedFd,
}

impl Announcer {
    pub(super) fn new() -> io::Result<Announcer> {
        // SAFETY: plain socket(2); the descriptor is owned from here on.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a valid descriptor that nobody else owns.
        Ok(Announcer { socket: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// Announces `address` from `device`, as both an ARP request and a reply (some stacks heed only
    /// one of them), or as one advertisement. A device without an Ethernet address needs none.
    pub(super) fn announce(&self, address: IpAddr, device: &str, index: u32) -> io::Result<()> {
        let Some(mac) = hardware_address(device)? else { return Ok(()) };
        match address {
            IpAddr::V4(ip) => {
                self.send(index, ETHERNET_BROADCAST, &arp(mac, ip, 1))?;
                self.send(index, ETHERNET_BROADCAST, &arp(mac, ip, 2))
            }
            IpAddr::V6(ip) => self.send(index, ETHERNET_ALL_NODES, &advertisement(mac, ip)),
        }
    }

    fn send(&self, index: u32, to: [u8; 6], frame: &[u8]) -> io::Result<()> {
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
        let size = u32::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        // SAFETY: the frame and the address outlive the call, and their sizes are told truly.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The device's Ethernet address; `None` for devices that have none (loopback, tunnels).
fn hardware_address(device: &str) -> io::Result<Option<[u8; 6]>> {
    let link = nix::ifaddrs::getifaddrs()?
        .filter(|entry| entry.interface_name == device)
        .find_map(|entry| entry.address?.as_link_addr().copied());
    Ok(link.and_then(|l| l.addr()).filter(|mac| *mac != [0; 6]))
}

/// An ARP packet about ourselves; `operation` 1 is a request, 2 a reply (RFC 826).
fn arp(mac: [u8; 6], ip: Ipv4Addr, operation: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(ETHERNET_BROADCAST);
    frame.extend(mac);
    frame.extend([0x08, 0x06]);
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend(if operation == 1 { [0; 6] } else { ETHERNET_BROADCAST });
    frame.extend(ip.octets());
    frame
}

/// A neighbour advertisement with the override flag and our link-layer address.
fn advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(ip.octets());
    icmp.extend([2, 1]);
    icmp.extend(mac);
    let sum = icmp_checksum(ip, ALL_NODES, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(14 + 40 + icmp.len());
    frame.extend(ETHERNET_ALL_NODES);
    frame.extend(mac);
    frame.extend([0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(icmp);
    frame
}

/// ICMPv6 checksum over the pseudo-header of RFC 8200 §8.1 (next header 58).
fn icmp_checksum(source: Ipv6Addr, destination: Ipv6Addr, icmp: &[u8]) -> u16 {
    let length = u16::try_from(icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut sum: u32 = 58 + u32::from(u16::from_be_bytes(length));
    for bytes in [&source.octets()[..], &destination.octets()[..], icmp] {
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_as_in_rfc_5227() {
        let request = arp(MAC, Ipv4Addr::new(192, 0, 2, 9), 1);
        assert_eq!(
            request,
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
                2, 0, 0, 0, 0, 7, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9
            ]
        );
        let reply = arp(MAC, Ipv4Addr::new(192, 0, 2, 9), 2);
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[32..38], ETHERNET_BROADCAST);
    }

    #[test]
    fn neighbour_advertisement_as_in_rfc_4861_with_a_right_checksum() {
        let ip: Ipv6Addr = "2001:db8::9".parse().expect("address");
        let frame = advertisement(MAC, ip);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[54], 136);
        assert_eq!(frame[58], 0x20, "override, not solicited");
        assert_eq!(frame[frame.len() - 8..], [2, 1, 2, 0, 0, 0, 0, 7]);
        // A checksum over data that holds its own checksum is zero.
        let all: Ipv6Addr = "ff02::1".parse().expect("address");
        assert_eq!(icmp_checksum(ip, all, &frame[54..]), 0);
    }
}
