//! The fault matrix: three nodes in namespaces, calls with audio both ways, and everything that can
//! happen to a node. Prints one row per fault; `make faults` runs it on a release build.
//!
//! ```text
//! FAULTS_CALLS=100          calls of each row of the matrix
//! FAULTS_SIZES="100 1000"   sizes at which the gap is measured; above FAULTS_MEDIA (1,000) the rest
//!                           are calls without media: four sockets a call meet the descriptor limit
//! FAULTS=owner,leader       only rows whose name contains one of these
//! ```

#[path = "../e2e/ringing.rs"]
mod ringing;
#[path = "../e2e/three.rs"]
#[expect(dead_code, reason = "the end-to-end tests use more of it")]
mod three;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ringing::Ringing;
use sbc_tests::load::env;
use sbc_tests::{can_make_namespaces, wait_for};
use three::{LONG, Load, Plan, Three, until_new_calls};

/// What a row says: the name, and what was measured.
struct Row {
    /// Of calls with audio.
    gaps: Option<sbc_tests::rtp::Gaps>,
    new_calls: Option<Duration>,
    total: u64,
    note: String,
}

type Fault = fn(&mut Three, u64) -> Row;

const MATRIX: [(&str, &str, Fault); 14] = [
    ("owner killed", "address", |three, calls| death(three, calls, false)),
    ("owner and leader killed", "address", |three, calls| death(three, calls, true)),
    ("leader killed, not owner", "address", leader_dies),
    ("owner killed, then the next owner", "address", in_turn),
    ("power of the owner cut", "address", power),
    ("owner cut off, follower", "address", |three, calls| cut_off(three, calls, false)),
    ("owner cut off, leader", "address", |three, calls| cut_off(three, calls, true)),
    ("leader cut off, not owner", "address", leader_cut_off),
    ("owner's link to the clients lost", "address", link_lost),
    ("owner stopped for 5 s", "address", sleeper),
    ("ringing: owner and leader killed", "address", rings),
    ("re-INVITE: owner killed", "reinvite", reinvited),
    ("drained by sbcctl", "address", drained),
    ("rolling restart", "address", rolling),
];

fn main() {
    if !can_make_namespaces("faults") {
        return;
    }
    let wanted = env("FAULTS", "");
    let calls: u64 = env("FAULTS_CALLS", "100").parse().expect("FAULTS_CALLS is a number");
    println!(
        "{:36} {:>6} {:>10} {:>10} {:>10} {:>10}  note",
        "fault", "calls", "audio", "gap ms", "max ms", "new ms"
    );
    let chosen = |name: &str| wanted.is_empty() || wanted.split(',').any(|w| name.contains(w));
    let mut failed = 0;
    for (name, failover, fault) in MATRIX.into_iter().filter(|(name, ..)| chosen(name)) {
        failed += u32::from(!row(name, failover, calls, fault));
    }
    if chosen("sizes") {
        for size in env("FAULTS_SIZES", "100 1000 10000").split_whitespace() {
            let size = size.parse().expect("FAULTS_SIZES are numbers");
            failed +=
                u32::from(!row("owner and leader killed", "address", size, |three, calls| {
                    death(three, calls, true)
                }));
        }
    }
    assert_eq!(failed, 0, "rows that failed");
}

fn row(name: &str, failover: &'static str, calls: u64, fault: Fault) -> bool {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let own_disks = name.contains("power");
        let early = name.contains("ringing");
        let mut three = Three::with(Plan { failover, own_disks, early, ..Plan::default() });
        fault(&mut three, calls)
    }));
    match done {
        Ok(row) => {
            let said = |gap: Option<u128>| gap.map_or_else(|| "-".to_owned(), |ms| ms.to_string());
            let gaps = row.gaps.as_ref();
            println!(
                "{name:36} {:>6} {:>10} {:>10} {:>10} {:>10}  {}",
                row.total,
                said(gaps.map(|g| g.both_ways as u128)),
                said(gaps.map(|g| g.median.as_millis())),
                said(gaps.map(|g| g.longest.as_millis())),
                said(row.new_calls.map(|d| d.as_millis())),
                row.note,
            );
            true
        }
        Err(_) => {
            println!("{name:36} {calls:>6}  FAILED (see above)");
            false
        }
    }
}

/// As many calls with media as asked, up to the limit, the rest without; long enough for the fault.
fn load(three: &Three, calls: u64) -> Load {
    let media: u64 = env("FAULTS_MEDIA", "1000").parse().expect("FAULTS_MEDIA is a number");
    let (rate, bare_rate) = (100, 200);
    let with = calls.min(media);
    let bare = calls - with;
    let setup = Duration::from_secs(with / rate + bare / bare_rate);
    let after = Duration::from_secs(20);
    let mut load = Load::start(three, with, rate, setup * 2 + after);
    if bare > 0 {
        load.add_bare(three, bare, bare_rate, setup + after);
    }
    load
}

fn finish(three: &Three, load: Load, new_calls: Option<Duration>, note: String) -> Row {
    let gaps = load.heard_again();
    let total = load.total();
    load.end(three);
    Row { gaps: Some(gaps), new_calls, total, note }
}

fn place_leader(three: &Three, owner: usize, leads: bool) -> usize {
    let leader = if leads { owner } else { owner % 3 + 1 };
    three.lead(leader);
    leader
}

fn death(three: &mut Three, calls: u64, leads: bool) -> Row {
    let owner = three.holder();
    place_leader(three, owner, leads);
    let load = load(three, calls);
    load.mark();
    three.kill(owner);
    let new_calls = until_new_calls(three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], load.total());
    finish(three, load, Some(new_calls), String::new())
}

fn leader_dies(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    let leader = place_leader(three, owner, false);
    let load = load(three, calls);
    load.mark();
    three.kill(leader);
    let new_calls = until_new_calls(three);
    finish(three, load, Some(new_calls), "calls stay where they are".to_owned())
}

fn in_turn(three: &mut Three, calls: u64) -> Row {
    let first = three.holder();
    let load = load(three, calls);
    load.mark();
    three.kill(first);
    let second = three.survivor(first);
    three.wait_carried(&[second], calls);
    let between = load.heard_again();
    three.restart(first);
    load.mark();
    three.kill(second);
    let new_calls = until_new_calls(three);
    let third = three.survivor(second);
    three.wait_carried(&[third], calls);
    let note = format!("the first: {} ms", between.median.as_millis());
    finish(three, load, Some(new_calls), note)
}

fn power(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    let load = load(three, calls);
    load.mark();
    three.power_cut(owner);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], calls);
    load.heard_again();
    three.restart(owner);
    finish(three, load, None, "it came back from its disk".to_owned())
}

fn cut_off(three: &mut Three, calls: u64, leads: bool) -> Row {
    let owner = three.holder();
    place_leader(three, owner, leads);
    let load = load(three, calls);
    load.mark();
    let begin = Instant::now();
    three.cut(owner, "to-swc");
    let let_go = wait_for("the minority to let go", LONG, || {
        (!three.has_addresses(owner)).then(|| begin.elapsed())
    });
    let new_calls = let_go + until_new_calls(three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], calls);
    load.heard_again();
    three.mend(owner);
    three.wait_up(3);
    let note = format!("let go after {} ms", let_go.as_millis());
    finish(three, load, Some(new_calls), note)
}

fn leader_cut_off(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    let leader = place_leader(three, owner, false);
    let load = load(three, calls);
    load.mark();
    three.cut(leader, "to-swc");
    let new_calls = until_new_calls(three);
    three.leader(owner);
    three.mend(leader);
    three.wait_up(3);
    finish(three, load, Some(new_calls), "calls stay where they are".to_owned())
}

fn link_lost(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    let load = load(three, calls);
    load.mark();
    three.carrier(owner, "swo", false);
    let new_calls = until_new_calls(three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], calls);
    load.heard_again();
    three.carrier(owner, "swo", true);
    three.wait_up(3);
    finish(three, load, Some(new_calls), String::new())
}

fn sleeper(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    let load = load(three, calls);
    let sleeper = three.nodes[owner - 1].take().expect("the owner runs");
    load.mark();
    let slept = Instant::now();
    sleeper.proc.signal(Signal::SIGSTOP);
    let new_calls = until_new_calls(three);
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], calls);
    load.heard_again();
    std::thread::sleep(Duration::from_secs(5).saturating_sub(slept.elapsed()));
    sleeper.proc.signal(Signal::SIGCONT);
    three.nodes[owner - 1] = Some(sleeper);
    three.wait_up(3);
    assert!(!three.has_addresses(owner), "the sleeper took the addresses back");
    finish(three, load, Some(new_calls), String::new())
}

fn reinvited(three: &mut Three, calls: u64) -> Row {
    let load = Load::start_own(three, 1, calls, 100, Duration::from_secs(15));
    load.mark();
    let begin = Instant::now();
    three.kill(1);
    three.wait_carried(&[2, 3], calls);
    let gaps = load.heard_again();
    let note = format!("all re-INVITEd and heard within {} ms", begin.elapsed().as_millis());
    let total = load.total();
    load.end(three);
    Row { gaps: Some(gaps), new_calls: None, total, note }
}

/// A third each is answered, refused and cancelled after the fault.
fn rings(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    three.lead(owner);
    let each = calls.div_ceil(3);
    // Long enough for all to ring and for the fault.
    let ringing = Ringing::start(three, each, Duration::from_secs(10 + each / 20));
    let begin = Instant::now();
    three.kill(owner);
    let survivor = three.survivor(owner);
    let total = ringing.total();
    three.wait_carried(&[survivor], total);
    let note =
        format!("carried on after {} ms, each ended as it should", begin.elapsed().as_millis());
    ringing.end(three);
    Row { gaps: None, new_calls: None, total, note }
}

fn drained(three: &mut Three, calls: u64) -> Row {
    let owner = three.holder();
    let load = load(three, calls);
    load.mark();
    three.node(owner).order("node drain --wait --timeout 10");
    let survivor = three.survivor(owner);
    three.wait_carried(&[survivor], calls);
    let new_calls = until_new_calls(three);
    finish(three, load, Some(new_calls), "safe to stop".to_owned())
}

fn rolling(three: &mut Three, calls: u64) -> Row {
    let load = load(three, calls);
    load.mark();
    for number in 1..=3 {
        three.nodes[number - 1].take().expect("the node runs").stop();
        three.restart(number);
    }
    finish(three, load, None, "all three stopped and started".to_owned())
}
