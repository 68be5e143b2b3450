//! rtpengine as a relay under test.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::Relay;
use crate::load::{Call, thread_time};
use crate::rtpengine::Rtpengine;

/// Starts it on loopback; `None` where it is not installed.
pub(crate) fn start() -> Option<Rtpengine> {
    let sides = [IpAddr::from([127, 0, 0, 32]); 2];
    Some(Rtpengine::new(Rtpengine::spawn(sides, None)?, sides))
}

impl Relay for Rtpengine {
    fn call(&mut self, index: usize, a: SocketAddr, b: SocketAddr) -> Call {
        let [to_a, to_b] = Rtpengine::call(self, index, a, b).expect("rtpengine takes the call");
        Call { to_a, to_b }
    }

    fn cpu(&self) -> Duration {
        thread_time(self.pid(), |_| true)
    }
}
