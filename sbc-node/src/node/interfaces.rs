//! Interfaces that come, go and change while the node runs.
//!
//! An id belongs to a name for the life of the process. An interface that is gone, and a listener
//! that its interface no longer has, *retire*: they stay open until the calls and subscriptions that
//! were there when they retired are over and their last transactions have run out, then they close. New
//! calls come by retired listeners no more, because no trunk is at an interface that is gone, and a
//! subscription there is not renewed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sbc_core::core::{Config, Input};
use sbc_core::net::{Interface, InterfaceId, Listener, Transport};

use super::context::Context;
use super::reload::Running;
use crate::shard::command::Command;
use crate::shard::listen::{self, Opened};
use crate::telemetry::time::unix_ms;
use crate::transport::{self, sockopt};

/// How often it is looked whether what retired is still in use.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// When something of an interface retired last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retiring {
    pub interface: InterfaceId,
    pub since: Instant,
    pub since_ms: u64,
}

/// The interfaces of a core's configuration: position is id. `before` are those in force; what
/// they have and `new` has not is kept, retired.
pub(super) fn merge(before: &[Interface], new: &[Interface]) -> Vec<Interface> {
    let find = |list: &[Interface], id: InterfaceId| list.iter().find(|i| i.id == id).cloned();
    let ids = before.iter().chain(new).map(|i| i.id.0).max();
    (0..=ids.unwrap_or(0))
        .map(InterfaceId)
        .filter_map(|id| {
            let (old, new) = (find(before, id), find(new, id));
            let gone = new.is_none();
            let mut merged = new.or_else(|| old.clone())?;
            if gone {
                merged.listeners.clear();
                merged.media = false;
            }
            for listener in old.into_iter().flat_map(|o| o.listeners) {
                if !merged.listeners.iter().any(|l| same(l, &listener)) {
                    merged.listeners.push(Listener { retired: true, ..listener });
                }
            }
            Some(merged)
        })
        .collect()
}

fn same(a: &Listener, b: &Listener) -> bool {
    (a.transport, a.local) == (b.transport, b.local)
}

/// What has retired by `after`, with the time of what had retired before.
pub(super) fn retiring(after: &[Interface], before: &Running) -> Vec<Retiring> {
    let (since, since_ms) = (Instant::now(), unix_ms());
    let retired = |interfaces: &[Interface], id: InterfaceId| {
        let found = interfaces.iter().find(|i| i.id == id);
        found.map_or(0, |i| i.listeners.iter().filter(|l| l.retired).count())
    };
    let after_ids = after.iter().filter(|i| i.listeners.iter().any(|l| l.retired)).map(|i| i.id);
    after_ids
        .map(|id| {
            let known = before.retiring.iter().find(|r| r.interface == id);
            match known {
                Some(known) if retired(after, id) <= retired(&before.core.interfaces, id) => *known,
                Some(_) | None => Retiring { interface: id, since, since_ms },
            }
        })
        .collect()
}

/// Opens for every shard what `after` has and `before` has not.
///
/// # Errors
/// The first listener that cannot be opened; nothing is open then.
pub(super) fn open_new(
    before: &[Interface],
    after: &[Interface],
    shards: usize,
    settings: &transport::Settings,
) -> anyhow::Result<Vec<Vec<Opened>>> {
    let open_now = |l: &Listener| before.iter().flat_map(|i| &i.listeners).any(|b| same(b, l));
    // SIP and WebSocket may share a port: what is ours already is not asked for again.
    let ours = |l: &Listener| {
        let streams = l.transport != Transport::Udp;
        let same = |b: &Listener| b.local == l.local && b.transport != Transport::Udp;
        streams && before.iter().flat_map(|i| &i.listeners).any(same)
    };
    let named = |interface: &Interface, listener: &Listener| {
        let (transport, local) = (listener.transport, listener.local);
        format!("interface {}: cannot listen on {transport}://{local}", interface.name)
    };
    for interface in after {
        for listener in interface.listeners.iter().filter(|l| !open_now(l) && !ours(l)) {
            let datagram = listener.transport == Transport::Udp;
            let free = sockopt::probe(listener.local, datagram, settings);
            free.with_context(|| named(interface, listener))?;
        }
    }
    let mut opened: Vec<Vec<Opened>> = (0..shards).map(|_| Vec::new()).collect();
    for interface in after {
        for listener in interface.listeners.iter().filter(|l| !open_now(l)) {
            let named = || named(interface, listener);
            for shard in &mut opened {
                shard.push(listen::open(interface.id, listener, settings).with_context(named)?);
            }
        }
    }
    Ok(opened)
}

/// Whether this machine has the media addresses that are new.
///
/// # Errors
/// The first address that cannot be bound.
pub(super) fn probe_media(
    before: &media_anchor::config::Config,
    after: &media_anchor::config::Config,
    settings: &transport::Settings,
) -> anyhow::Result<()> {
    let locals = |config: &media_anchor::config::Config| {
        let addrs = config.interfaces.iter().flat_map(|i| [i.v4, i.v6]);
        addrs.flatten().map(|a| a.local).collect::<Vec<_>>()
    };
    let known = locals(before);
    for local in locals(after).into_iter().filter(|l| !known.contains(l)) {
        sockopt::probe((local, 0).into(), true, settings)
            .with_context(|| format!("media cannot be relayed by {local}"))?;
    }
    Ok(())
}

impl Context {
    /// Gives every shard another configuration with other listeners: first the sockets, to send by,
    /// then the configuration, and only when all have that the new sockets are heard.
    pub(super) async fn give(&self, core: &Arc<Config>, mut opened: Vec<Vec<Opened>>) {
        let interfaces: Arc<[Interface]> = Arc::from(core.interfaces.clone());
        opened.resize_with(self.shards.len(), Vec::new);
        for (handle, opened) in self.shards.iter().zip(opened) {
            let interfaces = Arc::clone(&interfaces);
            self.offer(handle, Command::Listeners { interfaces, opened }).await;
        }
        self.broadcast(|| Input::Configure(Arc::clone(core))).await;
        // Answered after what was queued before.
        self.ask(|_, _, _| ()).await;
        for handle in &self.shards {
            self.offer(handle, Command::Watch).await;
        }
    }

    /// Closes what retired once nobody uses it. Runs as long as the node does.
    pub(super) async fn close_retired(self: Arc<Self>) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            every.tick().await;
            if !self.running.load().retiring.is_empty() {
                self.close_unused().await;
            }
        }
    }

    async fn close_unused(&self) {
        let _one_at_a_time = self.reloading.lock().await;
        let running = self.running.load_full();
        let mut left = Vec::new();
        for retiring in &running.retiring {
            // Answers to retransmissions, and their own last answers, within 64 T1.
            let quiet = running.core.transactions.timers.t1 * 64;
            let used = retiring.since.elapsed() < quiet || self.in_use(*retiring).await;
            if used {
                left.push(*retiring);
            }
        }
        if left.len() == running.retiring.len() {
            return;
        }
        let mut core = Config::clone(&running.core);
        for interface in &mut core.interfaces {
            if !left.iter().any(|r| r.interface == interface.id) {
                for listener in interface.listeners.iter().filter(|l| l.retired) {
                    let Listener { transport, local, .. } = listener;
                    tracing::info!(interface = %interface.name, %transport, %local, "closed");
                }
                interface.listeners.retain(|l| !l.retired);
            }
        }
        let core = Arc::new(core);
        self.give(&core, Vec::new()).await;
        self.running.store(Arc::new(Running { core, retiring: left, ..Running::clone(&running) }));
    }

    /// Whether a call or subscription from before is still up on an interface.
    async fn in_use(&self, retiring: Retiring) -> bool {
        let Retiring { interface, since_ms, .. } = retiring;
        let answers = self.ask(move |core, _, _| core.interface_used(interface, since_ms)).await;
        // Who does not answer may have one.
        answers.len() < self.shards.len() || answers.iter().any(|(_, used)| *used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sbc_core::net::Host;

    fn listener(port: u16) -> Listener {
        let local = std::net::SocketAddr::from(([192, 0, 2, 1], port));
        Listener {
            transport: Transport::Udp,
            local,
            advertise_host: Host::Ip(local.ip()),
            advertise_port: port,
            retired: false,
        }
    }

    fn interface(id: u16, name: &str, ports: &[u16]) -> Interface {
        Interface {
            id: InterfaceId(id),
            name: name.into(),
            realm: name.into(),
            listeners: ports.iter().map(|p| listener(*p)).collect(),
            media: true,
            large_by_tcp: true,
        }
    }

    fn shown(interfaces: &[Interface]) -> Vec<(u16, Vec<(u16, bool)>)> {
        let ports = |i: &Interface| {
            i.listeners.iter().map(|l| (l.local.port(), l.retired)).collect::<Vec<_>>()
        };
        interfaces.iter().map(|i| (i.id.0, ports(i))).collect()
    }

    #[test]
    fn what_is_gone_stays_in_its_place_and_retires() {
        let before = [interface(0, "a", &[1, 2]), interface(1, "b", &[3])];
        let after = merge(&before, &[interface(0, "a", &[2, 4]), interface(2, "c", &[5])]);
        let wanted = vec![
            (0, vec![(2, false), (4, false), (1, true)]),
            (1, vec![(3, true)]),
            (2, vec![(5, false)]),
        ];
        assert_eq!(shown(&after), wanted);
        assert!(!after[1].media);
        // It comes back: nothing of it retires any more.
        let again = merge(&after, &before);
        let wanted = vec![
            (0, vec![(1, false), (2, false), (4, true)]),
            (1, vec![(3, false)]),
            (2, vec![(5, true)]),
        ];
        assert_eq!(shown(&again), wanted);
    }
}
