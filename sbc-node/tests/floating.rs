//! Floating addresses on a real device, in a network namespace of the test's own.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use sbc_node::floating::{Floating, FloatingError, Placed};

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
        let mut floating = Floating::new(Duration::from_secs(60)).expect("netlink");
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

#[test]
fn an_address_nobody_refreshes_is_dropped_by_the_kernel() {
    in_namespace(async || {
        let mut floating = Floating::new(Duration::from_millis(900)).expect("netlink");
        for address in ["192.0.2.9", "2001:db8::9"] {
            floating.take(&placed(address)).await.expect("take");
        }
        let begin = Instant::now();
        loop {
            let shown = ip("addr show dev f0");
            if !shown.contains("192.0.2.9") && !shown.contains("2001:db8::9") {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "still there: {shown}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_device_that_does_not_exist_is_named() {
    in_namespace(async || {
        let mut floating = Floating::new(Duration::from_secs(1)).expect("netlink");
        let nowhere = Placed { device: "f9".to_owned(), ..placed("192.0.2.9") };
        match floating.take(&nowhere).await {
            Err(FloatingError::NoDevice(name)) => assert_eq!(name, "f9"),
            other => panic!("{other:?}"),
        }
    });
}
