//! Memory of an established call whose media userspace relays: in this process (session, streams,
//! both threads' state) and in the kernel (its four sockets), and the CPU of setting one up.
//!
//! What grows from one number of calls to another counts. Their number is bounded by the descriptor
//! limit.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::Relay;
use crate::footprint::{each, resident, slab};
use crate::load::{packet, thread_time};
use crate::ours::Ours;

const DESCRIPTORS_ELSEWHERE: usize = 200;
const SOCKETS: usize = 4;

/// What the kernel keeps of a socket that epoll watches.
const CACHES: [&str; 6] =
    ["UDP", "sock_inode_cache", "filp", "dentry", "eventpoll_epi", "eventpoll_pwq"];

/// Sets up as many of `calls` as descriptors allow, a quarter of them first, and lets every one talk.
pub(crate) fn run(calls: usize) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let _kept = setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard);
    let room = usize::try_from(hard).unwrap_or(usize::MAX) - DESCRIPTORS_ELSEWHERE;
    let calls = calls.min(room / SOCKETS);
    let mut relay = Ours::start(Duration::from_millis(2), 1);
    set_up(&mut relay);
    let ends = [21, 22].map(|host| {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, host], 0))).expect("binds");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("takes it");
        socket
    });
    let mut up = 0;
    let [small, large] = [calls / 4, calls].map(|wanted| {
        for n in up..wanted {
            talk(&mut relay, n, &ends);
        }
        up = wanted;
        (resident(), slab(|name| CACHES.contains(&name)))
    });
    let more = calls - calls / 4;
    println!(
        "per call, from {} to {calls} of them: {:.0} bytes resident in the process, {:.0} in the \
         kernel's caches of sockets",
        calls / 4,
        each(small.0, large.0, more),
        each(small.1, large.1, more)
    );
}

/// Sets a call up; one packet each way has arrived afterwards.
fn talk(relay: &mut Ours, n: usize, ends: &[UdpSocket; 2]) {
    let [a, b] = ends.each_ref().map(|end| end.local_addr().expect("is bound"));
    let call = relay.call(n, a, b);
    for (side, to) in [(0, call.to_a), (1, call.to_b)] {
        ends[side].send_to(&packet(n, side, 1, Duration::ZERO), to).expect("sends");
    }
    let mut data = [0; 256];
    for end in ends {
        end.recv(&mut data).expect("relayed");
    }
}

/// Prints the CPU of setting a call up and tearing it down: four sockets bound, watched and closed.
fn set_up(relay: &mut Ours) {
    const CALLS: usize = 500;
    let addr = |port| SocketAddr::from(([127, 0, 0, 21], port));
    let before = thread_time(std::process::id(), |_| true);
    for n in 0..CALLS {
        relay.call(1_000_000 + n, addr(4000), addr(4002));
        relay.close(1_000_000 + n);
    }
    let spent = thread_time(std::process::id(), |_| true) - before;
    println!("{} us CPU to set up and tear down a call", spent.as_micros() / CALLS as u128);
}
