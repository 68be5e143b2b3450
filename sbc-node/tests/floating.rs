//! Floating addresses on a real device, in a network namespace of the test's own.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use sbc_cluster::Timing;
use sbc_node::floating::{Floating, FloatingError, Lifetime, Placed};

fn ip(words: &str) -> String {
    let out = Command::new("ip").args(words.split_whitespace()).output().expect("ip");
    assert!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs `test` on a thread in a fresh network namespace with a veth pair `f0`/`f1`, both up.
fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root (or a user namespace) to make a network namespace");
        return;
    }
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("namespace");
        ip("link add f0 type veth peer name f1");
        ip("addr add 192.0.2.1/24 dev f0");
        ip("link set f0 up");
        ip("link set f1 up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn placed(address: &str) -> Placed {
    let address: IpAddr = address.parse().expect("address");
    Placed { address, device: "f0".to_owned() }
}

#[test]
fn an_address_is_taken_and_released() {
    in_namespace(async || {
        let mut floating = Floating::new(60).expect("netlink");
        for address in ["192.0.2.9", "2001:db8::9"] {
            let placed = placed(address);
            floating.take(&placed).await.expect("take");
            floating.take(&placed).await.expect("taking twice is the same");
            assert!(ip("addr show dev f0").contains(address));
            floating.refresh().await.expect("refresh");
            assert!(floating.release(&placed).await.expect("release"));
            assert!(!ip("addr show dev f0").contains(address));
            assert!(!floating.release(&placed).await.expect("releasing twice is the same"));
        }
        assert!(ip("addr show dev f0").contains("192.0.2.1/24"), "the device's own address stays");
    });
}

fn is_there(address: &str) -> bool {
    let address: IpAddr = address.parse().expect("address");
    let mut all = nix::ifaddrs::getifaddrs().expect("addresses");
    all.any(|i| {
        let held =
            i.address.as_ref().and_then(|a| match (a.as_sockaddr_in(), a.as_sockaddr_in6()) {
                (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
                (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
                (None, None) => None,
            });
        held == Some(address)
    })
}

/// What [`Lifetime`] counts on: within a quarter of a second after the lifetime that began with the
/// last refresh the kernel has dropped the address, whenever in a second that was. The kernel does so
/// under a lock that others of the machine may hold meanwhile: it may be late, not each time.
#[test]
fn an_address_nobody_refreshes_is_dropped_by_the_kernel() {
    in_namespace(async || {
        let lifetime = Lifetime::within(Timing::DEFAULT.handover).expect("one second fits");
        assert_eq!((lifetime.seconds, lifetime.fresh.as_millis()), (1, 30));
        let both = ["192.0.2.9", "2001:db8::9"];
        for phase_ms in [0, 130, 370, 610, 850] {
            let mut late = 0;
            while kept_too_long(lifetime, both, phase_ms).await {
                late += 1;
                assert!(late < 5, "late each time, phase {phase_ms} ms");
            }
        }
    });
}

/// Takes addresses, refreshes them so many milliseconds later and never again: whether the kernel had
/// one of them for longer than it should.
async fn kept_too_long(lifetime: Lifetime, addresses: [&str; 2], phase_ms: u64) -> bool {
    let mut floating = Floating::new(lifetime.seconds).expect("netlink");
    for address in addresses {
        floating.take(&placed(address)).await.expect("take");
    }
    tokio::time::sleep(Duration::from_millis(phase_ms)).await;
    floating.refresh().await.expect("refresh");
    let begin = Instant::now();
    for address in addresses {
        while is_there(address) {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{address} stays, phase {phase_ms} ms"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let after = begin.elapsed();
        eprintln!("{address} gone after {after:?}, phase {phase_ms} ms");
        assert!(after > Duration::from_millis(900), "{address}: {after:?}");
    }
    begin.elapsed() > Duration::from_millis(1_300)
}

#[test]
fn lifetime_lateness_and_freshness_fill_the_hand_over() {
    let within = |ms| Lifetime::within(Duration::from_millis(ms)).map(|l| (l.seconds, l.fresh));
    let ms = Duration::from_millis;
    assert_eq!(within(0), None);
    assert_eq!(within(1_279), None);
    assert_eq!(within(1_280), Some((1, ms(30))));
    assert_eq!(within(2_270), Some((1, ms(1_020))));
    assert_eq!(within(2_280), Some((2, ms(30))));
}

#[test]
fn a_device_that_does_not_exist_is_named() {
    in_namespace(async || {
        let mut floating = Floating::new(1).expect("netlink");
        let nowhere = Placed { device: "f9".to_owned(), ..placed("192.0.2.9") };
        match floating.take(&nowhere).await {
            Err(FloatingError::NoDevice(name)) => assert_eq!(name, "f9"),
            other => panic!("{other:?}"),
        }
    });
}
