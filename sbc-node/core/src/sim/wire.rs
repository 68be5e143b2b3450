//! The wire: who is on its way to whom, and what happens to it there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::net::{ConnId, Transport};

/// What the network does to datagrams, each in thousandths of them. Streams are only delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    pub loss: u32,
    pub duplicate: u32,
    /// Held back by up to [`Faults::late`], so that later ones overtake.
    pub reorder: u32,
    /// The way of one message takes between these two.
    pub delay: (Duration, Duration),
    pub late: Duration,
}

impl Faults {
    /// Nothing goes wrong; 5 ms one way.
    pub const NONE: Faults = Faults {
        loss: 0,
        duplicate: 0,
        reorder: 0,
        delay: (Duration::from_millis(5), Duration::from_millis(5)),
        late: Duration::from_millis(700),
    };
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    Duplicated,
    Lost,
    /// Nobody has the address.
    Unreachable,
}

/// One message as the wire saw it.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// When it was sent, since the start.
    pub at: Duration,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub transport: Transport,
    pub fate: Fate,
    pub data: Bytes,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) transport: Transport,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) conn: Option<ConnId>,
    pub(super) data: Bytes,
}

/// Everything under way, ordered by arrival and then by sending.
pub(super) struct Wire {
    rng: StdRng,
    pub(super) faults: Faults,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    parcels: std::collections::HashMap<u64, Parcel>,
    sequence: u64,
    /// Streams do not reorder: a connection's next message arrives no sooner than this.
    arrivals: std::collections::HashMap<(ConnId, SocketAddr), Instant>,
}

impl Wire {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Wire {
            rng: StdRng::seed_from_u64(seed),
            faults,
            queue: BinaryHeap::new(),
            parcels: std::collections::HashMap::new(),
            sequence: 0,
            arrivals: std::collections::HashMap::new(),
        }
    }

    pub(super) fn send(&mut self, now: Instant, parcel: Parcel) -> Fate {
        let mut at = now + self.delay();
        if let Some(conn) = parcel.conn {
            let last = self.arrivals.entry((conn, parcel.to)).or_insert(at);
            at = at.max(*last);
            *last = at;
            self.post(at, parcel);
            return Fate::Delivered;
        }
        if self.happens(self.faults.loss) {
            return Fate::Lost;
        }
        if self.happens(self.faults.reorder) {
            at += self.up_to(self.faults.late);
        }
        let twice = self.happens(self.faults.duplicate);
        if twice {
            let again = at + self.up_to(self.faults.late);
            self.post(again, parcel.clone());
        }
        self.post(at, parcel);
        if twice { Fate::Duplicated } else { Fate::Delivered }
    }

    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn take(&mut self, now: Instant) -> Option<Parcel> {
        if self.next_arrival()? > now {
            return None;
        }
        let Reverse((_, sequence)) = self.queue.pop()?;
        self.parcels.remove(&sequence)
    }

    fn post(&mut self, at: Instant, parcel: Parcel) {
        self.sequence += 1;
        self.parcels.insert(self.sequence, parcel);
        self.queue.push(Reverse((at, self.sequence)));
    }

    fn happens(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.next_u32() % 1_000 < thousandths
    }

    fn delay(&mut self) -> Duration {
        let (least, most) = self.faults.delay;
        least + self.up_to(most.saturating_sub(least))
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.rng.next_u64() % (micros + 1))
    }
}
