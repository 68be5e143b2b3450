//! Loss and jitter of one RTP source as RFC 3550 §A.1, §A.3 and §A.8 compute them.
//!
//! While the kernel relays the packets they are what the far receiver reports of the same source.
//!
//! Pure arithmetic on header fields and arrival times. The clock rate of dynamic payload types is
//! not signalled here: it is estimated over the first second.

use std::time::{Duration, Instant};

use crate::rtp::{Report, RtpHeader};

const MAX_DROPOUT: u16 = 3000;
const MAX_MISORDER: u16 = 100;
const SEQ_MOD: u32 = 1 << 16;

/// How long arrivals are watched before a dynamic payload type's clock rate is decided.
const ESTIMATE_OVER: Duration = Duration::from_secs(1);

/// Clock rates in use for dynamic payload types, in Hz.
const RATES_HZ: [u32; 6] = [8_000, 16_000, 24_000, 32_000, 48_000, 90_000];

/// Reception statistics of one side of one stream; starts anew with each SSRC and keeps the losses
/// of the earlier ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reception {
    current: Option<Source>,
    lost_before: u64,
    away: Option<Away>,
}

/// What is remembered of a source whose packets the kernel relays.
#[derive(Clone, Copy, Debug)]
struct Away {
    ssrc: u32,
    rate_hz: Option<u32>,
    jitter_us: u32,
}

/// RFC 3550 §A.1 `source`.
#[derive(Clone, Debug)]
struct Source {
    ssrc: u32,
    max_seq: u16,
    cycles: u32,
    base_seq: u32,
    /// A sequence number that came after a large jump; two in a row restart the source.
    bad_seq: u32,
    received: u64,
    clock: Clock,
    payload_type: u8,
    /// Last arrival and its timestamp.
    last: (Instant, u32),
    /// In timestamp units times 16, as §A.8's integer form.
    jitter_q4: u32,
}

#[derive(Clone, Copy, Debug)]
enum Clock {
    Known(u32),
    /// First arrival and timestamp.
    Estimating(Instant, u32),
}

impl Reception {
    /// Takes one packet in.
    pub(crate) fn packet(&mut self, now: Instant, header: &RtpHeader) {
        match &mut self.current {
            Some(source) if source.ssrc == header.ssrc => {
                if let Some(lost) = source.packet(now, header) {
                    self.lost_before += lost;
                }
            }
            other => {
                self.lost_before += other.as_ref().map_or(0, Source::lost);
                *other = Some(Source::new(now, header));
            }
        }
    }

    /// Expected minus received over all sources, each at least 0 (§A.3).
    pub(crate) fn lost(&self) -> u64 {
        self.lost_before + self.current.as_ref().map_or(0, Source::lost)
    }

    /// Interarrival jitter of the current source in microseconds (§A.8); 0 while the clock rate is
    /// unknown.
    pub(crate) fn jitter_us(&self) -> u32 {
        let away = self.away.map_or(0, |away| away.jitter_us);
        self.current.as_ref().map_or(away, Source::jitter_us)
    }

    /// Forgets sequence and timing (the kernel relays for a while) but keeps the losses.
    pub(crate) fn interrupt(&mut self) {
        self.lost_before = self.lost();
        if let Some(source) = self.current.take() {
            let rate_hz = match source.clock {
                Clock::Known(rate) => Some(rate),
                Clock::Estimating(..) => None,
            };
            let jitter_us = source.jitter_us();
            self.away = Some(Away { ssrc: source.ssrc, rate_hz, jitter_us });
        }
    }

    /// Takes in what the receiver behind us reports of the source that was interrupted: its losses
    /// are those before us and behind us. False for a report on anything else.
    pub(crate) fn report(&mut self, report: &Report) -> bool {
        let Some(away) = self.away.as_mut().filter(|away| away.ssrc == report.ssrc) else {
            return false;
        };
        if self.current.is_some() {
            return false;
        }
        self.lost_before = self.lost_before.max(u64::from(report.lost));
        if let Some(rate) = away.rate_hz.filter(|rate| *rate > 0) {
            let us = u64::from(report.jitter) * 1_000_000 / u64::from(rate);
            away.jitter_us = u32::try_from(us).unwrap_or(u32::MAX);
        }
        true
    }
}

impl Source {
    fn new(now: Instant, header: &RtpHeader) -> Source {
        Source {
            ssrc: header.ssrc,
            max_seq: header.sequence,
            cycles: 0,
            base_seq: u32::from(header.sequence),
            bad_seq: SEQ_MOD + 1,
            received: 1,
            clock: clock_of(header.payload_type)
                .map_or(Clock::Estimating(now, header.timestamp), Clock::Known),
            payload_type: header.payload_type,
            last: (now, header.timestamp),
            jitter_q4: 0,
        }
    }

    /// §A.1 `update_seq` without probation; the losses so far when the source restarted.
    fn packet(&mut self, now: Instant, header: &RtpHeader) -> Option<u64> {
        let delta = header.sequence.wrapping_sub(self.max_seq);
        if delta < MAX_DROPOUT {
            if header.sequence < self.max_seq {
                self.cycles = self.cycles.wrapping_add(SEQ_MOD);
            }
            self.max_seq = header.sequence;
        } else if delta <= u16::MAX - MAX_MISORDER {
            if u32::from(header.sequence) == self.bad_seq {
                let lost = self.lost();
                *self = Source::new(now, header);
                return Some(lost);
            }
            self.bad_seq = u32::from(header.sequence.wrapping_add(1));
            return None;
        }
        self.received += 1;
        self.arrival(now, header);
        None
    }

    /// §A.8. Events of another payload type (RFC 4733) have timestamps of their own meaning.
    fn arrival(&mut self, now: Instant, header: &RtpHeader) {
        if header.payload_type != self.payload_type {
            return;
        }
        let (last_at, last_timestamp) = self.last;
        self.last = (now, header.timestamp);
        let rate = match self.clock {
            Clock::Known(rate) => rate,
            Clock::Estimating(first_at, first) => {
                let elapsed = now.saturating_duration_since(first_at);
                if elapsed >= ESTIMATE_OVER {
                    self.clock =
                        Clock::Known(nearest_rate(header.timestamp.wrapping_sub(first), elapsed));
                }
                return;
            }
        };
        let elapsed = units(now.saturating_duration_since(last_at), rate);
        let stamped = i64::from(header.timestamp.wrapping_sub(last_timestamp).cast_signed());
        let d = u32::try_from((elapsed - stamped).unsigned_abs().min(u64::from(rate) * 60))
            .unwrap_or(u32::MAX);
        // A jump of more than a second is a gap (silence, hold), not jitter.
        if d < rate {
            self.jitter_q4 = self.jitter_q4 + d - ((self.jitter_q4 + 8) >> 4);
        }
    }

    fn lost(&self) -> u64 {
        let extended_max = u64::from(self.cycles) + u64::from(self.max_seq);
        (extended_max + 1).saturating_sub(u64::from(self.base_seq)).saturating_sub(self.received)
    }

    fn jitter_us(&self) -> u32 {
        match self.clock {
            Clock::Known(rate) => {
                let us = u64::from(self.jitter_q4 >> 4) * 1_000_000 / u64::from(rate.max(1));
                u32::try_from(us).unwrap_or(u32::MAX)
            }
            Clock::Estimating(..) => 0,
        }
    }
}

/// Clock rate of static payload types (RFC 3551 §6); `None` for dynamic ones.
fn clock_of(payload_type: u8) -> Option<u32> {
    match payload_type {
        6 => Some(16_000),
        10 | 11 => Some(44_100),
        16 => Some(11_025),
        17 => Some(22_050),
        14 | 25..=34 => Some(90_000),
        0..=24 => Some(8_000),
        _ => None,
    }
}

fn nearest_rate(timestamps: u32, elapsed: Duration) -> u32 {
    let measured = u128::from(timestamps) * 1_000_000 / elapsed.as_micros().max(1);
    RATES_HZ.into_iter().min_by_key(|rate| measured.abs_diff(u128::from(*rate))).unwrap_or(8_000)
}

/// A duration in timestamp units.
fn units(elapsed: Duration, rate: u32) -> i64 {
    i64::try_from(elapsed.as_micros() * u128::from(rate) / 1_000_000).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sequence: u16, timestamp: u32) -> RtpHeader {
        RtpHeader { payload_type: 0, sequence, timestamp, ssrc: 1 }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn lost_is_expected_minus_received_a3() {
        let start = Instant::now();
        let mut reception = Reception::default();
        for sequence in [10, 11, 13, 14, 17] {
            reception.packet(start, &header(sequence, 0));
        }
        assert_eq!(reception.lost(), 3);
        reception.packet(start, &header(12, 0));
        assert_eq!(reception.lost(), 2, "late is not lost");
        reception.packet(start, &header(12, 0));
        reception.packet(start, &header(12, 0));
        reception.packet(start, &header(12, 0));
        assert_eq!(reception.lost(), 0, "duplicates never make it negative");
    }

    #[test]
    fn sequence_numbers_wrap_a1() {
        let start = Instant::now();
        let mut reception = Reception::default();
        for sequence in [65534, 65535, 0, 2] {
            reception.packet(start, &header(sequence, 0));
        }
        assert_eq!(reception.lost(), 1);
    }

    #[test]
    fn a_jump_restarts_the_source_after_two_in_a_row_a1() {
        let start = Instant::now();
        let mut reception = Reception::default();
        for sequence in [1, 2, 4, 30_000] {
            reception.packet(start, &header(sequence, 0));
        }
        assert_eq!(reception.lost(), 1, "one packet far away is not believed");
        reception.packet(start, &header(30_001, 0));
        reception.packet(start, &header(30_003, 0));
        assert_eq!(reception.lost(), 2);
    }

    #[test]
    fn a_new_ssrc_keeps_the_losses_of_the_old_one() {
        let start = Instant::now();
        let mut reception = Reception::default();
        reception.packet(start, &header(1, 0));
        reception.packet(start, &header(3, 0));
        reception.packet(start, &RtpHeader { ssrc: 2, ..header(900, 0) });
        reception.packet(start, &RtpHeader { ssrc: 2, ..header(902, 0) });
        assert_eq!(reception.lost(), 2);
        reception.interrupt();
        reception.packet(start, &RtpHeader { ssrc: 2, ..header(990, 0) });
        assert_eq!(reception.lost(), 2, "what the kernel relayed is not lost");
    }

    #[test]
    fn even_arrivals_have_no_jitter_a8() {
        let start = Instant::now();
        let mut reception = Reception::default();
        for n in 0..100u16 {
            reception.packet(start + ms(20) * u32::from(n), &header(n, u32::from(n) * 160));
        }
        assert_eq!(reception.jitter_us(), 0);
    }

    #[test]
    fn jitter_follows_the_reference_filter_a8() {
        let start = Instant::now();
        let mut reception = Reception::default();
        let (mut jitter, mut last) = (0.0f64, 0i64);
        let mut at = start;
        for n in 0..200u16 {
            let late = i64::from(n % 2) * 10;
            at = start + ms(20) * u32::from(n) + ms(late.unsigned_abs());
            reception.packet(at, &header(n, u32::from(n) * 160));
            if n > 0 {
                let d = ((late - last) * 8).unsigned_abs();
                #[expect(clippy::cast_precision_loss, reason = "small test values")]
                let d = d as f64;
                jitter += (d - jitter) / 16.0;
            }
            last = late;
        }
        assert!(at > start);
        let reference_us = jitter / 8000.0 * 1e6;
        let ours = f64::from(reception.jitter_us());
        assert!((ours - reference_us).abs() < 400.0, "{ours} against {reference_us}");
    }

    #[test]
    fn the_clock_of_a_dynamic_payload_type_is_estimated() {
        let start = Instant::now();
        let mut reception = Reception::default();
        for n in 0..200u16 {
            let late = ms(u64::from(n % 2) * 5);
            let header = RtpHeader { payload_type: 111, ..header(n, u32::from(n) * 960) };
            reception.packet(start + ms(20) * u32::from(n) + late, &header);
        }
        let jitter = reception.jitter_us();
        assert!((4000..=5100).contains(&jitter), "{jitter}");
    }
}
