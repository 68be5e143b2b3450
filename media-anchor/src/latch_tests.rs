//! The latching table of `latch.rs` in virtual time.

use std::time::Duration;

use super::*;

const CONFIG: Learning =
    Learning { packets: 3, grace: Duration::from_millis(200), window: Duration::from_secs(3) };

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 4000))
}

/// Signalled address of all tests.
fn signalled() -> SocketAddr {
    addr(1)
}

struct Bench {
    latch: SideLatch,
    start: Instant,
    seq: u16,
}

impl Bench {
    fn new(mode: Latch) -> Bench {
        let mut latch = SideLatch::default();
        latch.signal(Some(signalled()), mode, true);
        Bench { latch, start: Instant::now(), seq: 0 }
    }

    fn at(&mut self, ms: u64, from: u8) -> Judgement {
        self.seq += 1;
        self.raw(ms, from, Some((u32::from(from), self.seq)))
    }

    fn raw(&mut self, ms: u64, from: u8, ident: Ident) -> Judgement {
        let now = self.start + Duration::from_millis(ms);
        self.latch.packet(now, addr(from), ident, &CONFIG, |_| true)
    }
}

#[test]
fn before_signalling_everybody_is_a_stranger() {
    let mut bench = Bench::new(Latch::Auto);
    bench.latch = SideLatch::default();
    for ms in 0..10 {
        assert_eq!(bench.at(ms * 20, 2), Judgement::Stranger);
    }
    assert_eq!(bench.latch.destination(), None);
}

#[test]
fn off_trusts_sdp_alone() {
    let mut bench = Bench::new(Latch::Off);
    for ms in 0..20 {
        assert_eq!(bench.at(ms * 20, 2), Judgement::Stranger);
    }
    assert_eq!(bench.at(500, 1), Judgement::Accept);
    assert_eq!(bench.latch.destination(), Some(signalled()));
    assert_eq!(bench.latch.settled(bench.start), Some(signalled()));
}

#[test]
fn auto_latches_the_signalled_address_by_its_first_packet() {
    let mut bench = Bench::new(Latch::Auto);
    assert_eq!(bench.latch.destination(), Some(signalled()), "sent to before it sends");
    assert_eq!(bench.at(0, 1), Judgement::Latched);
    assert_eq!(bench.at(20, 1), Judgement::Accept);
    for ms in 0..100 {
        assert_eq!(bench.at(20 + ms * 20, 2), Judgement::Stranger);
    }
    assert_eq!(bench.latch.learnt(), Some(signalled()));
}

#[test]
fn auto_the_signalled_address_wins_within_the_grace_of_a_stranger() {
    let mut bench = Bench::new(Latch::Auto);
    for n in 0..9 {
        assert_eq!(bench.at(n * 20, 2), Judgement::Probation);
    }
    assert_eq!(bench.at(190, 1), Judgement::Latched);
    assert_eq!(bench.at(200, 2), Judgement::Stranger);
    assert_eq!(bench.latch.destination(), Some(signalled()));
}

#[test]
fn auto_the_first_consistent_source_wins_after_the_grace() {
    let mut bench = Bench::new(Latch::Auto);
    for n in 0..10 {
        assert_eq!(bench.at(n * 20, 2), Judgement::Probation);
        assert_eq!(bench.latch.destination(), Some(signalled()));
    }
    assert_eq!(bench.at(200, 2), Judgement::Latched);
    assert_eq!(bench.at(220, 2), Judgement::Accept);
    assert_eq!(bench.at(220, 3), Judgement::Stranger);
    assert_eq!(bench.latch.destination(), Some(addr(2)));
    assert_eq!(bench.latch.settled(bench.start + Duration::from_millis(2999)), None);
    let closes = bench.start + CONFIG.window;
    assert_eq!(bench.latch.closes(), Some(closes));
    assert_eq!(bench.latch.settled(closes), Some(addr(2)));
}

#[test]
fn auto_a_learnt_source_gives_way_to_the_signalled_one_within_the_window_only() {
    let mut early = Bench::new(Latch::Auto);
    let mut late = Bench::new(Latch::Auto);
    for bench in [&mut early, &mut late] {
        for n in 0..=10 {
            bench.at(n * 20, 2);
        }
    }
    assert_eq!(early.at(2900, 1), Judgement::Latched);
    assert_eq!(early.at(2920, 2), Judgement::Stranger);
    assert_eq!(early.at(2940, 1), Judgement::Accept);
    assert_eq!(late.at(3000, 1), Judgement::Stranger);
    assert_eq!(late.at(3020, 2), Judgement::Accept);
    assert_eq!(late.latch.settled(late.start), Some(addr(2)));
}

#[test]
fn the_window_opens_with_media_not_with_signalling() {
    let mut bench = Bench::new(Latch::Auto);
    assert_eq!(bench.at(90_000, 1), Judgement::Latched, "ringing took 90 s");
}

#[test]
fn force_ignores_the_signalled_address() {
    let mut bench = Bench::new(Latch::Force);
    assert_eq!(bench.latch.destination(), None, "nothing is sent before something came");
    assert_eq!(bench.at(0, 2), Judgement::Probation);
    assert_eq!(bench.at(5, 1), Judgement::Probation);
    assert_eq!(bench.at(20, 2), Judgement::Probation);
    assert_eq!(bench.at(40, 2), Judgement::Latched);
    assert_eq!(bench.at(60, 1), Judgement::Stranger);
    assert_eq!(bench.latch.destination(), Some(addr(2)));
    assert_eq!(bench.latch.settled(bench.start), Some(addr(2)));
}

#[test]
fn a_spray_of_single_packets_latches_nobody() {
    for mode in [Latch::Auto, Latch::Force] {
        let mut bench = Bench::new(mode);
        for n in 0..200u64 {
            let from = u8::try_from(2 + n % 250).unwrap_or(2);
            assert_eq!(bench.at(n * 20, from), Judgement::Probation);
        }
        assert_eq!(bench.latch.learnt(), None);
    }
}

#[test]
fn a_spray_cannot_push_out_a_source_that_made_progress() {
    let mut bench = Bench::new(Latch::Force);
    assert_eq!(bench.raw(0, 2, Some((9, 1))), Judgement::Probation);
    assert_eq!(bench.raw(1, 2, Some((9, 2))), Judgement::Probation);
    for n in 0..100u8 {
        bench.at(2, 10 + n);
    }
    assert_eq!(bench.raw(20, 2, Some((9, 3))), Judgement::Latched);
}

#[test]
fn a_source_must_be_consistent() {
    let mut bench = Bench::new(Latch::Force);
    let idents = [(1, 10), (1, 11), (2, 12), (2, 13), (2, 13), (2, 900), (2, 901), (2, 902)];
    let judged: Vec<_> = idents.iter().map(|ident| bench.raw(0, 2, Some(*ident))).collect();
    assert_eq!(judged[..7], [Judgement::Probation; 7], "SSRC change, repeat and jump start anew");
    assert_eq!(judged[7], Judgement::Latched);
}

#[test]
fn raw_media_needs_two_packets() {
    let mut bench = Bench::new(Latch::Force);
    assert_eq!(bench.raw(0, 2, None), Judgement::Probation);
    assert_eq!(bench.raw(800, 2, None), Judgement::Latched);
}

#[test]
fn an_unusable_source_is_never_latched() {
    let mut bench = Bench::new(Latch::Force);
    for n in 0..10 {
        let judged = bench.latch.packet(bench.start, addr(2), Some((1, n)), &CONFIG, |_| false);
        assert_eq!(judged, Judgement::Stranger);
    }
}

#[test]
fn nothing_relearns_without_a_new_offer_or_answer() {
    let mut bench = Bench::new(Latch::Force);
    for n in 0..3 {
        bench.at(n * 20, 2);
    }
    bench.latch.signal(Some(signalled()), Latch::Force, false);
    for n in 0..50 {
        assert_eq!(bench.at(10_000 + n * 20, 3), Judgement::Stranger);
    }
    assert_eq!(bench.at(20_000, 2), Judgement::Accept);
}

#[test]
fn relearning_keeps_the_endpoint_that_did_not_move() {
    let mut bench = Bench::new(Latch::Force);
    for n in 0..3 {
        bench.at(n * 20, 2);
    }
    bench.latch.signal(Some(signalled()), Latch::Force, true);
    assert_eq!(bench.latch.destination(), Some(addr(2)), "audio goes on");
    assert_eq!(bench.at(100, 3), Judgement::Probation);
    assert_eq!(bench.at(110, 2), Judgement::Latched);
    assert_eq!(bench.at(120, 3), Judgement::Stranger);
}

#[test]
fn relearning_finds_an_endpoint_whose_nat_binding_moved() {
    let mut bench = Bench::new(Latch::Force);
    for n in 0..3 {
        bench.at(n * 20, 2);
    }
    bench.latch.signal(Some(signalled()), Latch::Force, true);
    let judged: Vec<_> = (0..3).map(|n| bench.at(100 + n * 20, 3)).collect();
    assert_eq!(judged, [Judgement::Probation, Judgement::Probation, Judgement::Latched]);
    assert_eq!(bench.latch.destination(), Some(addr(3)));
}

#[test]
fn a_new_signalled_address_drops_the_old_latch_at_once() {
    let mut bench = Bench::new(Latch::Auto);
    bench.at(0, 1);
    bench.latch.signal(Some(addr(7)), Latch::Auto, false);
    assert_eq!(bench.latch.destination(), Some(addr(7)));
    assert_eq!(bench.at(20, 1), Judgement::Probation);
    assert_eq!(bench.at(40, 7), Judgement::Latched);
    assert_eq!(bench.at(60, 1), Judgement::Stranger);
}

#[test]
fn a_hold_without_address_keeps_the_latch_and_a_relearn_without_one_closes_it() {
    let mut bench = Bench::new(Latch::Auto);
    bench.at(0, 1);
    bench.latch.signal(None, Latch::Auto, false);
    assert_eq!(bench.at(20, 1), Judgement::Accept);
    bench.latch.signal(None, Latch::Auto, true);
    assert_eq!(bench.at(40, 1), Judgement::Stranger);
    assert_eq!(bench.latch.destination(), None);
}

#[test]
fn turning_latching_off_mid_call_pins_the_signalled_address() {
    let mut bench = Bench::new(Latch::Force);
    for n in 0..3 {
        bench.at(n * 20, 2);
    }
    bench.latch.signal(Some(addr(2)), Latch::Off, false);
    assert_eq!(bench.at(100, 2), Judgement::Accept);
    assert_eq!(bench.at(100, 1), Judgement::Stranger);
    assert!(bench.latch.is_endpoint(addr(2)));
    assert!(!bench.latch.is_endpoint(addr(1)));
}

#[test]
fn what_another_node_had_latched_stays_latched() {
    let mut bench = Bench::new(Latch::Auto);
    for mode in [Latch::Auto, Latch::Force] {
        bench.latch = SideLatch::default();
        bench.latch.restore(addr(9));
        bench.latch.signal(Some(signalled()), mode, false);
        assert_eq!(bench.latch.settled(bench.start), Some(addr(9)));
        assert_eq!(bench.at(0, 9), Judgement::Accept);
        assert_eq!(bench.at(20, 1), Judgement::Stranger, "as it was on the other node");
        // The next offer or answer is one like any other.
        bench.latch.signal(Some(addr(3)), mode, false);
        assert_eq!(bench.latch.settled(bench.start), None);
    }
    bench.latch.restore(addr(9));
    bench.latch.signal(Some(signalled()), Latch::Off, false);
    assert_eq!(bench.latch.settled(bench.start), Some(signalled()), "SDP alone is trusted");
    bench.latch.restore(addr(9));
    bench.latch.signal(Some(signalled()), Latch::Auto, true);
    assert_eq!(bench.latch.settled(bench.start), None, "told to learn anew");
}
