//! The deterministic simulation: our own cores on a virtual clock, a seeded network that loses,
//! delays, reorders and doubles messages and splits, disks that forget what was not synced, nodes
//! that crash and sleep, wall clocks that jump, and an operator who lets nodes join, leave, drain,
//! moves addresses, replaces disks and updates releases meanwhile. One seed is one run, the same
//! each time.
//!
//! ```text
//! cargo test -p sbc-cluster sim::                     a fixed few seeds
//! SEEDS=2000 cargo test --release -p sbc-cluster sim:: thousands
//! SEED=17 cargo test -p sbc-cluster sim::             one again
//! ```
//!
//! `disk.rs` the forgetful disk, `world.rs` time, network and nodes, `edge.rs` what holds the addresses,
//! `client.rs` who writes, `operator.rs` what is done on purpose, `faults.rs` what goes wrong,
//! `checks.rs` what must hold nevertheless.

mod checks;
mod client;
mod disk;
mod edge;
mod faults;
mod operator;
mod world;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use world::World;

use crate::config::Timing;

/// A bug put in on purpose, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    None,
    /// Writes are reported durable before they are.
    AckBeforePersist,
    /// Addresses are handed on before the lease has run out.
    EarlyHandover,
    /// An address is said to be dropped before it is.
    SaysDroppedTooEarly,
    /// A node that lost its disk comes back under its former id.
    SameIdAfterLoss,
    /// Entries are written in a format that not all members read yet.
    AssumesUpdated,
}

/// Splitmix64: all the chance there is in a run.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        let n = usize::try_from(self.below(list.len() as u64)).expect("an index");
        list[n]
    }

    /// True in `percent` of a hundred cases.
    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A planted bug must show within so many seeds.
const SEEDS_TO_FIND: u64 = 80;

/// Runs one seed; the error says what did not hold.
fn run(seed: u64, plant: Plant) -> Result<World, String> {
    let nodes = if seed.is_multiple_of(3) { 5 } else { 3 };
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, nodes, plant);
        world.run().map(|()| world)
    }));
    match result {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.unwrap_or_else(|| "panic".to_owned()))
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn invariants_hold_under_faults() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(12),
    };
    let total = seeds.end - seeds.start;
    let mut failed = Vec::new();
    let (mut acked, mut faults, mut orders) = (0, 0, operator::Tally::default());
    for seed in seeds {
        match run(seed, Plant::None) {
            Ok(world) => {
                acked += world.acked();
                faults += world.faults();
                orders += world.operator.tally;
            }
            Err(reason) => {
                println!("SEED={seed}: {reason}");
                failed.push(seed);
            }
        }
    }
    println!("{total} seeds, {acked} acknowledged writes, {faults} faults, {orders:?}");
    assert_eq!(failed, Vec::<u64>::new(), "seeds that failed");
    // The run means something only when much was written and much went wrong.
    assert!(acked > total * 100 && faults > total * 3, "{acked} writes, {faults} faults");
    assert!(total < 100 || orders.each_happened(), "{orders:?}");
}

#[test]
fn a_seed_repeats_itself() {
    let one = run(5, Plant::None).expect("holds");
    let two = run(5, Plant::None).expect("holds");
    assert_eq!(one.fingerprint(), two.fingerprint());
}

/// Each bug that was put in is found within so many seeds, by what it breaks.
#[test]
fn finds_the_bugs_that_were_put_in() {
    // With each, the seed to begin with: one that found it when this was written.
    let plants: [(Plant, u64, &[&str]); 5] = [
        (Plant::AckBeforePersist, 54, &["lost", "differs at", "to_commit", "out of range"]),
        (Plant::EarlyHandover, 5, &["held by two"]),
        (Plant::SaysDroppedTooEarly, 11, &["held by two"]),
        (Plant::SameIdAfterLoss, 7, &["lost", "differs at", "to_commit"]),
        (Plant::AssumesUpdated, 0, &["version 3"]),
    ];
    let mut missed = Vec::new();
    for (plant, first, marks) in plants {
        let found = (first..first + SEEDS_TO_FIND)
            .find_map(|seed| run(seed, plant).err().map(|reason| (seed, reason)));
        println!("{plant:?}: {found:?}");
        let right = |reason: &str| marks.iter().any(|mark| reason.contains(mark));
        if !found.is_some_and(|(_, reason)| right(&reason)) {
            missed.push(plant);
        }
    }
    assert_eq!(missed, [], "planted and not found, or found by something else");
}

/// A holder's death costs the hand-over delay, a leader's death no more: the election runs
/// meanwhile. Virtual time, a network without loss.
#[test]
fn the_death_of_a_leader_takes_no_longer_than_that_of_another() {
    for seed in 0..6_u64 {
        for leads in [true, false] {
            let nodes = if seed.is_multiple_of(3) { 5 } else { 3 };
            let mut world = World::calm(seed, nodes);
            let gap = world.kill_holder(leads).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            println!("seed {seed}, {nodes} nodes, leads {leads}: {gap:?}");
            let lease = Timing::DEFAULT.lease;
            assert!(gap > lease, "before the lease ran out: {gap:?}");
            assert!(gap < lease + Duration::from_millis(300), "lease + 300 ms missed: {gap:?}");
        }
    }
}
