//! What connections of an interface are judged by: its TLS, its balancers, its web origins. Replaced as
//! a whole when the configuration is reloaded; connections that stand are not asked again.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use sbc_core::cidr::Cidr;
use sbc_core::net::InterfaceId;

use super::tls::Profile;
use super::ws::Rules;

/// The rules of one interface.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// `None`: it has no TLS.
    pub tls: Option<Arc<Profile>>,
    /// Load balancers whose connections begin with a PROXY protocol v2 header.
    pub proxies: Vec<Cidr>,
    pub web: Arc<Rules>,
}

impl Door {
    pub(super) fn is_proxy(&self, source: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(source))
    }
}

/// The rules of every interface, shared by the shards.
#[derive(Debug, Default)]
pub struct Doors(ArcSwap<HashMap<InterfaceId, Arc<Door>>>);

impl Doors {
    pub fn new(doors: HashMap<InterfaceId, Arc<Door>>) -> Doors {
        Doors(ArcSwap::from_pointee(doors))
    }

    /// Puts other rules in place, for connections to come.
    pub fn replace(&self, doors: HashMap<InterfaceId, Arc<Door>>) {
        self.0.store(Arc::new(doors));
    }

    pub(super) fn of(&self, interface: InterfaceId) -> Option<Arc<Door>> {
        self.0.load().get(&interface).cloned()
    }
}
