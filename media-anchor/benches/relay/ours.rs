//! Our relay, in this process: its threads are told apart by name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use media_anchor::config::{Config, Dscp, MediaAddr, MediaInterface};
use media_anchor::{
    EventSink, Handle, InterfaceId, Latch, MediaAnchor, Remote, SessionId, Side, SideSpec,
    StreamKind,
};

use crate::Relay;
use crate::load::{Call, thread_time};

pub(crate) struct Ours {
    handle: Handle,
    _anchor: MediaAnchor,
    _events: std::sync::mpsc::Receiver<media_anchor::Event>,
}

impl Ours {
    pub(crate) fn start(coalesce: Duration, threads: usize) -> Ours {
        let ip = IpAddr::from([127, 0, 0, 31]);
        let mut config = Config::new(vec![MediaInterface {
            id: InterfaceId(0),
            v4: Some(MediaAddr { local: ip, advertise: ip }),
            v6: None,
            ports: 20_000..=39_999,
            dscp: Dscp::default(),
        }]);
        config.policy.allow_local = true;
        config.relay_threads = threads;
        config.coalesce = coalesce;
        let anchor = MediaAnchor::start(config, None).expect("starts");
        let (sink, events) = EventSink::new(100_000, Arc::new(|| {}));
        Ours { handle: anchor.handle(0, &sink), _anchor: anchor, _events: events }
    }
}

impl Ours {
    pub(crate) fn close(&mut self, index: usize) {
        self.handle.close(SessionId(index as u64));
    }
}

impl Relay for Ours {
    fn call(&mut self, index: usize, a: SocketAddr, b: SocketAddr) -> Call {
        let id = SessionId(index as u64);
        self.handle.open(id, Some(Duration::from_secs(60))).expect("opens");
        let [to_a, to_b] = [(Side::A, a), (Side::B, b)].map(|(side, rtp)| {
            let spec = SideSpec { interface: InterfaceId(0), ipv6: false };
            let local = self.handle.bind(id, 0, StreamKind::Audio, side, spec).expect("binds");
            let remote = Remote {
                rtp: Some(rtp),
                rtcp: None,
                rtcp_mux: false,
                sends: true,
                receives: true,
                latch: Latch::Auto,
            };
            self.handle.remote(id, 0, side, &remote, true).expect("takes it");
            local.rtp
        });
        Call { to_a, to_b }
    }

    fn cpu(&self) -> Duration {
        thread_time(std::process::id(), |name| name.starts_with("media-"))
    }
}
