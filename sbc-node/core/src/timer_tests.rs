//! The wheel against a `BTreeMap` model, and its edges one by one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn drain(wheel: &mut TimerWheel<u32>, now: Instant) -> Vec<u32> {
    std::iter::from_fn(|| wheel.pop(now)).map(|(_, value)| value).collect()
}

#[test]
fn fires_at_its_time_and_not_before() {
    let t0 = Instant::now();
    for delay in [0, 1, 63, 64, 65, 500, 4_095, 4_096, 32_000, 262_144, 86_400_000] {
        let mut wheel = TimerWheel::new(t0);
        wheel.insert(t0 + ms(delay), 7);
        if delay > 0 {
            assert_eq!(drain(&mut wheel, t0 + ms(delay - 1)), [], "early at {delay}");
        }
        assert_eq!(drain(&mut wheel, t0 + ms(delay)), [7], "late at {delay}");
        assert!(wheel.is_empty());
        assert_eq!(wheel.deadline(), None);
    }
}

#[test]
fn a_fraction_of_a_millisecond_rounds_up() {
    let t0 = Instant::now();
    let mut wheel = TimerWheel::new(t0);
    wheel.insert(t0 + Duration::from_micros(1_500), 1);
    assert_eq!(wheel.deadline(), Some(t0 + ms(2)));
    assert_eq!(wheel.pop(t0 + Duration::from_micros(1_999)), None);
    assert_eq!(wheel.pop(t0 + ms(2)), Some((t0 + ms(2), 1)));
}

#[test]
fn one_millisecond_yields_in_order_of_insertion_across_levels() {
    let t0 = Instant::now();
    let mut wheel = TimerWheel::new(t0);
    wheel.insert(t0 + ms(5_000), 1);
    assert_eq!(drain(&mut wheel, t0 + ms(4_990)), []);
    wheel.insert(t0 + ms(5_000), 2);
    wheel.insert(t0 + ms(4_999), 3);
    assert_eq!(drain(&mut wheel, t0 + ms(6_000)), [3, 1, 2]);
}

#[test]
fn a_past_time_fires_at_the_next_pop() {
    let t0 = Instant::now();
    let mut wheel = TimerWheel::new(t0);
    assert_eq!(wheel.pop(t0 + ms(1_000)), None);
    wheel.insert(t0, 1);
    assert_eq!(drain(&mut wheel, t0 + ms(1_000)), [1]);
}

#[test]
fn a_dead_key_never_cancels_its_successor() {
    let t0 = Instant::now();
    let mut wheel = TimerWheel::new(t0);
    let first = wheel.insert(t0 + ms(10), 1);
    assert_eq!(wheel.cancel(first), Some(1));
    assert_eq!(wheel.cancel(first), None);
    let second = wheel.insert(t0 + ms(10), 2);
    assert_eq!(second.index, first.index, "the place is used again");
    assert_eq!(wheel.cancel(first), None);
    assert_eq!(drain(&mut wheel, t0 + ms(10)), [2]);
    assert_eq!(wheel.cancel(second), None);
}

#[test]
fn far_timers_wake_the_owner_at_most_once_per_level() {
    let t0 = Instant::now();
    let mut wheel = TimerWheel::new(t0);
    let at = t0 + ms(123_456_789);
    wheel.insert(at, 1);
    let mut wakes = 0;
    loop {
        let now = wheel.deadline().expect("armed");
        assert!(now <= at);
        if let Some((set, value)) = wheel.pop(now) {
            assert_eq!((set, value), (at, 1));
            break;
        }
        wakes += 1;
    }
    assert!(wakes < LEVELS, "{wakes} wakes");
}

#[test]
fn the_slab_is_reused() {
    let t0 = Instant::now();
    let mut wheel = TimerWheel::new(t0);
    for round in 0..1_000 {
        let keys: Vec<_> = (0..10).map(|n| wheel.insert(t0 + ms(round + n), 0)).collect();
        keys.into_iter().for_each(|key| assert!(wheel.cancel(key).is_some()));
    }
    assert_eq!(wheel.entries.len(), 10);
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64),
    Cancel(usize),
    Advance(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let delay = prop_oneof![0..4u64, 0..100u64, 0..5_000u64, 0..300_000u64, 0..20_000_000u64];
    let step = prop_oneof![0..3u64, 0..70u64, 0..5_000u64, 0..400_000u64];
    let op = prop_oneof![
        4 => delay.prop_map(Op::Insert),
        2 => any::<usize>().prop_map(Op::Cancel),
        2 => step.prop_map(Op::Advance),
    ];
    proptest::collection::vec(op, 1..200)
}

proptest! {
    /// Same timers, same order, same times as a map ordered by (tick, insertion).
    #[test]
    fn agrees_with_an_ordered_map(ops in ops()) {
        let t0 = Instant::now();
        let mut now = 0u64;
        let mut wheel = TimerWheel::new(t0);
        let mut model: BTreeMap<(u64, u32), ()> = BTreeMap::new();
        let mut keys = Vec::new();
        let mut sequence = 0u32;
        for op in ops {
            match op {
                Op::Insert(delay) => {
                    keys.push((wheel.insert(t0 + ms(now + delay), sequence), now + delay, sequence));
                    model.insert((now + delay, sequence), ());
                    sequence += 1;
                }
                Op::Cancel(pick) if !keys.is_empty() => {
                    let (key, tick, value) = keys[pick % keys.len()];
                    let expected = model.remove(&(tick, value)).map(|()| value);
                    prop_assert_eq!(wheel.cancel(key), expected);
                }
                Op::Cancel(_) => {}
                Op::Advance(step) => {
                    now += step;
                    while let Some((at, value)) = wheel.pop(t0 + ms(now)) {
                        let (&(tick, expected), ()) = model.first_key_value().expect("model is empty");
                        prop_assert_eq!((at, value), (t0 + ms(tick), expected));
                        model.pop_first();
                    }
                    prop_assert!(model.first_key_value().is_none_or(|(&(tick, _), ())| tick > now));
                }
            }
            prop_assert_eq!(wheel.len(), model.len());
            let first = model.first_key_value().map(|(&(tick, _), ())| t0 + ms(tick));
            let agrees = match (wheel.deadline(), first) {
                (Some(deadline), Some(first)) => deadline <= first && deadline >= t0 + ms(now),
                (deadline, first) => deadline == first,
            };
            prop_assert!(agrees, "deadline");
        }
    }
}
