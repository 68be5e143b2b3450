//! The load: endpoints that send 50 packets per second each and count what comes back.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::Relay;

/// Where the endpoints of a call send to.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) to_a: SocketAddr,
    pub(crate) to_b: SocketAddr,
}

/// Sockets per side; calls share them, the relay's ports tell them apart.
const SOCKETS: usize = 32;

/// The packets of all calls are spread over the slots of 20 ms.
const SLOTS: usize = 20;
const SLOT: Duration = Duration::from_millis(1);
const HEADER: usize = 12;
const LENGTH: usize = 172;
const WARM_UP: Duration = Duration::from_millis(1200);

/// What one run measured.
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    cpu: Duration,
    latencies_us: Vec<u32>,
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.received.max(1) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    pub(crate) fn lost_percent(&self) -> f64 {
        100.0 * self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }

    pub(crate) fn latency_us(&self, percent: usize) -> u32 {
        let at = self.latencies_us.len() * percent / 100;
        self.latencies_us.get(at).copied().unwrap_or(0)
    }
}

/// One running load.
pub(crate) struct Load {
    start: Instant,
    sides: [Vec<UdpSocket>; 2],
    calls: Vec<Call>,
    sequence: u16,
    sent: u64,
    received: u64,
    latencies_us: Vec<u32>,
}

impl Load {
    /// Sets `count` calls up and lets them talk for `time`.
    pub(crate) fn run(relay: &mut dyn Relay, count: usize, time: Duration) -> Outcome {
        let sockets = |host| -> Vec<UdpSocket> {
            (0..SOCKETS)
                .map(|_| {
                    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, host], 0)));
                    let socket = socket.expect("binds");
                    socket.set_nonblocking(true).expect("takes it");
                    socket2::SockRef::from(&socket)
                        .set_recv_buffer_size(4 << 20)
                        .expect("takes it");
                    socket
                })
                .collect()
        };
        let sides = [sockets(21), sockets(22)];
        let addr =
            |sockets: &[UdpSocket], n: usize| sockets[n % SOCKETS].local_addr().expect("is bound");
        let calls =
            (0..count).map(|n| relay.call(n, addr(&sides[0], n), addr(&sides[1], n))).collect();
        let mut load = Load {
            start: Instant::now(),
            sides,
            calls,
            sequence: 0,
            sent: 0,
            received: 0,
            latencies_us: Vec::new(),
        };
        load.talk(WARM_UP);
        (load.sent, load.received) = (0, 0);
        load.latencies_us.clear();
        let before = relay.cpu();
        load.talk(time);
        let cpu = relay.cpu() - before;
        load.latencies_us.sort_unstable();
        Outcome { sent: load.sent, received: load.received, cpu, latencies_us: load.latencies_us }
    }

    fn talk(&mut self, time: Duration) {
        let begin = Instant::now();
        let mut slot = 0u32;
        while begin.elapsed() < time {
            let due = begin + SLOT * slot;
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            self.send_slot(slot as usize % SLOTS);
            self.receive_all();
            slot += 1;
        }
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end {
            std::thread::sleep(SLOT);
            self.receive_all();
        }
    }

    fn send_slot(&mut self, slot: usize) {
        if slot == 0 {
            self.sequence = self.sequence.wrapping_add(1);
        }
        for (index, call) in self.calls.iter().enumerate().skip(slot).step_by(SLOTS) {
            for (side, to) in [(0, call.to_a), (1, call.to_b)] {
                let data = packet(index, side, self.sequence, self.start.elapsed());
                if self.sides[side][index % SOCKETS].send_to(&data, to).is_ok() {
                    self.sent += 1;
                }
            }
        }
    }

    fn receive_all(&mut self) {
        let mut buffer = [0u8; 2048];
        for socket in self.sides.iter().flatten() {
            while let Ok(len) = socket.recv(&mut buffer) {
                if len != LENGTH {
                    continue;
                }
                self.received += 1;
                let stamp = buffer.get(HEADER..HEADER + 8).and_then(|b| b.try_into().ok());
                let sent_at = Duration::from_nanos(u64::from_be_bytes(stamp.unwrap_or_default()));
                let late = self.start.elapsed().saturating_sub(sent_at);
                self.latencies_us.push(u32::try_from(late.as_micros()).unwrap_or(u32::MAX));
            }
        }
    }
}

/// An RTP packet that says when it was sent.
pub(crate) fn packet(call: usize, side: usize, sequence: u16, at: Duration) -> [u8; LENGTH] {
    let mut data = [0x55; LENGTH];
    let ssrc = u32::try_from(call * 2 + side).expect("few calls");
    data[..2].copy_from_slice(&[0x80, 8]);
    data[2..4].copy_from_slice(&sequence.to_be_bytes());
    data[4..8].copy_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
    data[8..12].copy_from_slice(&ssrc.to_be_bytes());
    let stamp = u64::try_from(at.as_nanos()).expect("short runs");
    data[HEADER..HEADER + 8].copy_from_slice(&stamp.to_be_bytes());
    data
}

/// Run time of the threads of a process whose name passes `wanted`, from `/proc`.
pub(crate) fn thread_time(pid: u32, wanted: impl Fn(&str) -> bool) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the relay runs");
    let times = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
        let run_ns: u64 = stat.split(' ').next()?.parse().ok()?;
        wanted(name.trim()).then_some(Duration::from_nanos(run_ns))
    });
    times.sum()
}
