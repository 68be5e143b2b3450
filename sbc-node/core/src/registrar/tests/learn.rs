//! Learnt keepalive intervals, on a virtual clock and behind NATs that forget.

use super::*;

/// A phone behind a NAT.
struct Phone {
    contact: &'static str,
    flow: Flow,
    /// When something last came through its NAT, in seconds of the clock; `None` while the way is closed.
    open: Option<u64>,
}

impl Phone {
    fn new(contact: &'static str, remote: &str) -> Phone {
        Phone { contact, flow: flow(Transport::Udp, remote), open: None }
    }
}

/// What happened to keepalives: seconds since the phone was last heard, and whether it answered.
type Pings = Vec<(u64, bool)>;

fn learning(longest_s: u64) -> Bench {
    let keepalive = Keepalive {
        longest: Some(Duration::from_secs(longest_s)),
        ..RegistrarPolicy::default().keepalive.unwrap()
    };
    Bench::new(RegistrarPolicy { keepalive: Some(keepalive), ..policy() })
}

/// Lets time pass for phones that register every so often, behind a NAT that forgets.
fn live(b: &mut Bench, phones: &mut [Phone], seconds: u64, every_s: u64, forgets_s: u64) -> Pings {
    let mut pings = Pings::new();
    for _ in 0..seconds {
        let now_s = (b.now - b.t0).as_secs();
        for (n, phone) in phones.iter_mut().enumerate() {
            if (now_s + 7 * n as u64).is_multiple_of(every_s) || phone.open.is_none() && now_s == 0
            {
                b.flow = phone.flow;
                b.register(&format!("Contact: <{}>;expires=3600\r\n", phone.contact));
                phone.open = Some(now_s);
            }
        }
        for due in b.run(1) {
            let Due::Ping(ping) = due else { continue };
            // One that is not there says nothing.
            let phone = phones.iter_mut().find(|p| p.contact == &*ping.uri);
            let Some(phone) = phone else { continue };
            let now_s = (b.now - b.t0).as_secs();
            let silent_s = phone.open.map_or(u64::MAX, |at| now_s - at);
            let open = silent_s <= forgets_s;
            pings.push((silent_s, open));
            phone.open = open.then_some(now_s);
            match open {
                true => b.registrar.bindings().ping_answered(b.now, ping.id),
                false => b.registrar.bindings().ping_failed(b.now, ping.id),
            }
        }
    }
    pings
}

const HOUR: u64 = 3_600;

fn trials(b: &mut Bench) -> (u64, u64) {
    let stats = b.registrar.bindings().stats();
    (stats.ping_trials, stats.ping_trials_missed)
}

#[test]
fn the_interval_of_a_nat_is_learnt_and_kept_below_what_it_forgets() {
    let mut b = learning(600);
    let mut phones = [Phone::new("sip:a@10.0.0.5", "198.51.100.7:5060")];
    live(&mut b, &mut phones, 6 * HOUR, 900, 180);
    let (tried, missed) = trials(&mut b);
    assert!((5..=20).contains(&tried) && (1..=5).contains(&missed), "{tried} {missed}");
    let later = live(&mut b, &mut phones, 2 * HOUR, 900, 180);
    assert!(later.iter().all(|(_, answered)| *answered), "{later:?}");
    let longest = later.iter().map(|p| p.0).max().unwrap();
    assert!((170..=180).contains(&longest), "{later:?}");
    assert!(later.len() < 60, "every 30 s they would be 240: {}", later.len());
    // Others behind the same address begin with what is known; those behind another with nothing.
    let mut others = [
        Phone::new("sip:b@10.0.0.6", "198.51.100.7:6060"),
        Phone::new("sip:c@10.0.0.7", "203.0.113.9:5060"),
    ];
    let first = live(&mut b, &mut others[..1], 900, 900, 180);
    assert!(first.len() <= 6, "{first:?}");
    let second = live(&mut b, &mut others[1..], 900, 900, 180);
    assert!(second.len() > first.len(), "{second:?}");
}

#[test]
fn the_longest_gap_is_never_passed() {
    let mut b = learning(100);
    let mut phones = [Phone::new("sip:a@10.0.0.5", "198.51.100.7:5060")];
    let pings = live(&mut b, &mut phones, 4 * HOUR, 1_800, 100_000);
    assert!(pings.iter().all(|(silent_s, answered)| *silent_s <= 101 && *answered), "{pings:?}");
    assert_eq!(trials(&mut b).1, 0);
}

#[test]
fn a_phone_that_registers_often_ends_what_can_be_learnt() {
    let mut b = learning(600);
    let mut phones = [Phone::new("sip:a@10.0.0.5", "198.51.100.7:5060")];
    let pings = live(&mut b, &mut phones, 4 * HOUR, 60, 600);
    assert!(pings.iter().all(|(_, answered)| *answered), "{pings:?}");
    let (tried, _) = trials(&mut b);
    live(&mut b, &mut phones, 4 * HOUR, 60, 600);
    assert_eq!(trials(&mut b).0, tried, "no more is tried");
    assert!(tried <= 24, "{tried}");
}

#[test]
fn a_nat_that_changes_is_learnt_anew() {
    let mut b = learning(600);
    let mut phones = [
        Phone::new("sip:a@10.0.0.5", "198.51.100.7:5060"),
        Phone::new("sip:b@10.0.0.6", "198.51.100.7:6060"),
    ];
    live(&mut b, &mut phones, 6 * HOUR, 900, 180);
    live(&mut b, &mut phones, 6 * HOUR, 900, 60);
    let later = live(&mut b, &mut phones, 2 * HOUR, 900, 60);
    let missed = later.iter().filter(|(_, answered)| !answered).count();
    assert_eq!(missed, 0, "{later:?}");
    let longest = later.iter().map(|p| p.0).max().unwrap();
    assert!((50..=60).contains(&longest), "{later:?}");
}

#[test]
fn without_the_option_every_gap_is_the_same() {
    let mut b = Bench::new(policy());
    let mut phones = [Phone::new("sip:a@10.0.0.5", "198.51.100.7:5060")];
    let pings = live(&mut b, &mut phones, 2 * HOUR, 900, 180);
    assert!(pings.len() >= 238 && pings.iter().all(|p| p.0 <= 31), "{}", pings.len());
    assert_eq!(trials(&mut b), (0, 0));
}
