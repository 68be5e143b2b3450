//! Audio of many calls between two ends, measured: one socket on either side of the SBC, every call
//! told apart by the SSRC, and the longest silence of each direction of each.
//!
//! The ends do not negotiate: SIPp's scenarios name their addresses, and log the SBC's ports.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::net::socket_in;

const PACKET: Duration = Duration::from_millis(20);
/// Calls that are not watched closely send one packet in this many.
const SPARSE: usize = 25;
const PAYLOAD: usize = 160;

/// One end of all calls.
#[derive(Clone, Debug)]
pub struct End {
    /// The namespace and the address that SDP named.
    pub ns: String,
    pub address: String,
    /// SIPp's log with lines `PORT <call> <ip> <port>`.
    pub log: PathBuf,
}

/// What was received of one call in one direction.
#[derive(Clone, Copy, Debug)]
struct Heard {
    last: Instant,
    silence: Duration,
    since_mark: u64,
}

#[derive(Default)]
struct Side {
    /// Where each call's packets go, by SIPp's number of the call.
    targets: Mutex<Vec<(u32, SocketAddr)>>,
    heard: Mutex<HashMap<u32, Heard>>,
}

/// Audio that flows both ways until dropped.
pub struct Talk {
    sides: [Arc<Side>; 2],
    ends: [End; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How the audio of the calls got over something.
#[derive(Clone, Copy, Debug)]
pub struct Gaps {
    /// Calls that were heard on both ends after the mark.
    pub both_ways: usize,
    /// Of the calls watched closely: the silence that half of them did not exceed, and the longest.
    pub median: Duration,
    pub longest: Duration,
}

impl Talk {
    /// Starts talking on every call that both logs name by now. The first `close` calls send a packet
    /// each 20 ms, the others one each half second.
    pub fn start(ends: [End; 2], close: usize) -> Talk {
        let sides = [Arc::new(Side::default()), Arc::new(Side::default())];
        let stop = Arc::new(AtomicBool::new(false));
        let mut talk = Talk { sides, ends, stop, threads: Vec::new() };
        talk.learn();
        for at in [0, 1] {
            let socket = socket_in(&talk.ends[at].ns, &talk.ends[at].address);
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
            // Thousands of calls fill the default one during one turn of another thread.
            let big = nix::sys::socket::sockopt::RcvBufForce;
            nix::sys::socket::setsockopt(&socket, big, &(8 << 20)).expect("receive buffer");
            let hearing = socket.try_clone().expect("clone");
            let (side, stop) = (Arc::clone(&talk.sides[at]), Arc::clone(&talk.stop));
            talk.threads.push(std::thread::spawn(move || hear(&hearing, &side, &stop)));
            let (side, stop) = (Arc::clone(&talk.sides[at]), Arc::clone(&talk.stop));
            talk.threads.push(std::thread::spawn(move || speak(&socket, &side, close, &stop)));
        }
        talk
    }

    /// Reads the logs again: new calls, and new ports of old ones.
    pub fn learn(&self) {
        for (end, side) in self.ends.iter().zip(&self.sides) {
            let text = std::fs::read_to_string(&end.log).unwrap_or_default();
            let mut targets = HashMap::new();
            for line in text.lines() {
                let mut words = line.split_whitespace().skip_while(|w| *w != "PORT").skip(1);
                let call = words.next().and_then(|w| w.parse::<u32>().ok());
                let host = words.next().and_then(|w| w.parse().ok());
                let port = words.next().and_then(|w| w.parse().ok());
                if let (Some(call), Some(host), Some(port)) = (call, host, port) {
                    targets.insert(call, SocketAddr::new(host, port));
                }
            }
            let mut targets: Vec<_> = targets.into_iter().collect();
            targets.sort_unstable();
            *side.targets.lock().expect("lock") = targets;
        }
    }

    /// Calls whose ports both sides know.
    pub fn calls(&self) -> usize {
        let count = |side: &Side| side.targets.lock().expect("lock").len();
        count(&self.sides[0]).min(count(&self.sides[1]))
    }

    /// Calls heard on both ends since the last [`Talk::mark`].
    pub fn both_ways(&self) -> usize {
        let heard = |side: &Side| {
            side.heard.lock().expect("lock").values().filter(|h| h.since_mark > 0).count()
        };
        heard(&self.sides[0]).min(heard(&self.sides[1]))
    }

    /// Forgets the silences so far.
    pub fn mark(&self) {
        for side in &self.sides {
            for heard in side.heard.lock().expect("lock").values_mut() {
                heard.silence = Duration::ZERO;
                heard.since_mark = 0;
            }
        }
    }

    /// Counts anew who is heard; the silences stay.
    pub fn recount(&self) {
        for side in &self.sides {
            for heard in side.heard.lock().expect("lock").values_mut() {
                heard.since_mark = 0;
            }
        }
    }

    /// What happened since the mark. `close` as at the start.
    pub fn gaps(&self, close: usize) -> Gaps {
        let mut silences = Vec::new();
        for (side, other) in [(0, 1), (1, 0)] {
            let watched: Vec<u32> = {
                let targets = self.sides[other].targets.lock().expect("lock");
                targets.iter().take(close).map(|(call, _)| *call).collect()
            };
            let heard = self.sides[side].heard.lock().expect("lock");
            for call in watched {
                let silence = heard.get(&call).map_or(Duration::MAX, |h| {
                    if h.since_mark == 0 { Duration::MAX } else { h.silence }
                });
                silences.push(silence);
            }
        }
        silences.sort_unstable();
        Gaps {
            both_ways: self.both_ways(),
            median: silences.get(silences.len() / 2).copied().unwrap_or_default(),
            longest: silences.last().copied().unwrap_or_default(),
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it has been printed.
            drop(thread.join());
        }
    }
}

fn speak(socket: &UdpSocket, side: &Side, close: usize, stop: &AtomicBool) {
    let mut packet = vec![0xd5; 12 + PAYLOAD];
    let begin = Instant::now();
    for turn in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let targets = side.targets.lock().expect("lock").clone();
        for (at, (call, to)) in targets.iter().enumerate() {
            if at >= close && !(turn + at).is_multiple_of(SPARSE) {
                continue;
            }
            let count = u32::try_from(turn).unwrap_or(u32::MAX);
            packet[0] = 0x80;
            packet[1] = 8;
            packet[2..4].copy_from_slice(&count.to_be_bytes()[2..4]);
            packet[4..8].copy_from_slice(&count.wrapping_mul(160).to_be_bytes());
            packet[8..12].copy_from_slice(&call.to_be_bytes());
            // Lost in an outage, or refused by a host that has just lost the address.
            drop(socket.send_to(&packet, to));
        }
        let next = begin + PACKET * u32::try_from(turn + 1).unwrap_or(u32::MAX);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn hear(socket: &UdpSocket, side: &Side, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
        let Some(ssrc) = buffer[..length].get(8..12) else { continue };
        let call = u32::from_be_bytes([ssrc[0], ssrc[1], ssrc[2], ssrc[3]]);
        let now = Instant::now();
        let mut heard = side.heard.lock().expect("lock");
        let entry = heard.entry(call).or_insert(Heard {
            last: now,
            silence: Duration::ZERO,
            since_mark: 0,
        });
        entry.silence = entry.silence.max(now - entry.last);
        entry.last = now;
        entry.since_mark += 1;
    }
}
