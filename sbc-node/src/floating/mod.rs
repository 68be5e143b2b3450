//! Floating addresses: put on a device while the cluster says that they are ours, taken off when
//! it does not.
//!
//! Whose an address is, is decided elsewhere (the replicated log). What lives here is only the
//! doing, with one safety of its own: an address is added with a short kernel lifetime and
//! refreshed while the lease holds, so that a process that is stopped, hung or killed loses its
//! addresses without doing anything. [`Lifetime`] says how that fits with the hand-over.

mod announce;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use announce::Announcer;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, CacheInfo};

/// One address on one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Placed {
    pub address: IpAddr,
    pub device: String,
}

/// What the kernel may take beyond an address's lifetime until it drops it: `ADDRCONF_TIMER_FUZZ`, a
/// quarter of a second, for both families.
const KERNEL_LATE: Duration = Duration::from_millis(250);
/// A confirmation of the lease is that young at best when it is acted upon.
const FRESH_MIN: Duration = Duration::from_millis(30);

/// How long the kernel keeps an address that nobody refreshes, and how old the confirmation of the
/// lease may be by which it is refreshed. Together with what the kernel is late by that is the
/// hand-over delay at most: also the kernel of a node that was stopped in the middle of anything has
/// dropped an address before another node is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The kernel counts whole seconds.
    pub seconds: u32,
    pub fresh: Duration,
}

impl Lifetime {
    /// The longest lifetime for a hand-over delay; `None` where not even one second fits.
    pub const fn within(handover: Duration) -> Option<Lifetime> {
        let Some(left) = handover.checked_sub(KERNEL_LATE) else { return None };
        let Some(whole) = left.checked_sub(FRESH_MIN) else { return None };
        let whole = whole.as_secs();
        if whole == 0 || whole > 3_600 {
            return if whole == 0 { None } else { Some(Lifetime { seconds: 3_600, fresh: left }) };
        }
        let Some(fresh) = left.checked_sub(Duration::from_secs(whole)) else { return None };
        #[expect(clippy::cast_possible_truncation, reason = "3,600 at most")]
        Some(Lifetime { seconds: whole as u32, fresh })
    }
}

const _: () = assert!(Lifetime::within(sbc_cluster::Timing::DEFAULT.handover).is_some());

/// Why an address could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum FloatingError {
    #[error("no network device named {0}")]
    NoDevice(String),
    #[error("{device}: {address}: {source}")]
    Netlink { address: IpAddr, device: String, source: rtnetlink::Error },
    #[error("announcing {address} on {device}: {source}")]
    Announce { address: IpAddr, device: String, source: std::io::Error },
    #[error("opening netlink: {0}")]
    Open(std::io::Error),
    #[error("opening a packet socket, for announcements: {0}")]
    Packet(std::io::Error),
}

/// Puts addresses on devices and takes them off again.
pub struct Floating {
    handle: rtnetlink::Handle,
    /// How long the kernel keeps an address that nobody refreshes; whole seconds, at least 1.
    lifetime_s: u32,
    held: HashMap<Placed, u32>,
    announcer: Announcer,
}

impl Floating {
    /// Opens netlink; must be called inside a tokio runtime.
    pub fn new(lifetime_s: u32) -> Result<Floating, FloatingError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(FloatingError::Open)?;
        tokio::spawn(connection);
        Ok(Floating {
            handle,
            lifetime_s: lifetime_s.max(1),
            held: HashMap::new(),
            announcer: Announcer::new().map_err(FloatingError::Packet)?,
        })
    }

    /// Adds the address if it is not there, says so on the network, and holds it for one lifetime.
    /// An address that was there already (a dead process left it) is taken over all the same.
    pub async fn take(&mut self, placed: &Placed) -> Result<(), FloatingError> {
        let index = device_index(&placed.device)?;
        self.set(placed, index).await?;
        self.held.insert(placed.clone(), index);
        self.announce(placed, index)
    }

    fn announce(&self, placed: &Placed, index: u32) -> Result<(), FloatingError> {
        self.announcer.announce(placed.address, &placed.device, index).map_err(|source| {
            FloatingError::Announce {
                address: placed.address,
                device: placed.device.clone(),
                source,
            }
        })
    }

    /// Gives every held address another lifetime. To be called more often than the lifetime, and
    /// only while the lease holds.
    pub async fn refresh(&mut self) -> Result<(), FloatingError> {
        for (placed, &index) in &self.held {
            self.set(placed, index).await?;
        }
        Ok(())
    }

    /// Says once more on the network where the held addresses are.
    pub fn announce_held(&self) -> Result<(), FloatingError> {
        for (placed, &index) in &self.held {
            self.announce(placed, index)?;
        }
        Ok(())
    }

    /// Takes the address off; whether it was there.
    pub async fn release(&mut self, placed: &Placed) -> Result<bool, FloatingError> {
        self.held.remove(placed);
        let index = device_index(&placed.device)?;
        let mut request = self.handle.address().add(index, placed.address, full(placed.address));
        let message = request.message_mut().clone();
        match self.handle.address().del(message).execute().await {
            Ok(()) => Ok(true),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -libc::EADDRNOTAVAIL =>
            {
                Ok(false)
            }
            Err(source) => Err(FloatingError::Netlink {
                address: placed.address,
                device: placed.device.clone(),
                source,
            }),
        }
    }

    /// Takes every held address off; the errors are told one by one, none stops the others.
    pub async fn release_all(&mut self) -> Vec<FloatingError> {
        let held: Vec<Placed> = self.held.keys().cloned().collect();
        let mut errors = Vec::new();
        for placed in held {
            if let Err(error) = self.release(&placed).await {
                errors.push(error);
            }
        }
        errors
    }

    async fn set(&self, placed: &Placed, index: u32) -> Result<(), FloatingError> {
        let mut request =
            self.handle.address().add(index, placed.address, full(placed.address)).replace();
        let mut lifetime = CacheInfo::default();
        lifetime.ifa_valid = self.lifetime_s;
        // Never the source address of anything that did not bind to it: preferred lifetime 0 marks
        // an IPv6 address deprecated; for IPv4 the kernel ignores it where it chooses by route.
        lifetime.ifa_preferred = if placed.address.is_ipv6() { 0 } else { self.lifetime_s };
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::CacheInfo(lifetime));
        attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        request.execute().await.map_err(|source| FloatingError::Netlink {
            address: placed.address,
            device: placed.device.clone(),
            source,
        })
    }
}

/// A floating address is added as a host address: the device's own address makes the route.
fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn device_index(device: &str) -> Result<u32, FloatingError> {
    nix::net::if_::if_nametoindex(device).map_err(|_| FloatingError::NoDevice(device.to_owned()))
}
