//! Memory of the SBC per established call with media.
//!
//! Method: calls are set up through one node at `RATE` per second and held; the process's resident
//! memory is read before the first and once all are up, and the difference is divided by the calls
//! that are up. Then every call is hung up and the memory read once more. Three rows: `CALLS` calls
//! (50,000) without media, as many without media as descriptors allow with it, and the same with
//! media. A call with media holds four sockets, so the hard limit of descriptors (`ulimit -Hn`)
//! bounds the last. Kernel memory of sockets is not in it.

use std::time::Duration;

use sbc_tests::load::{end, env, pinned, resident_kib, udp_bound};
use sbc_tests::{binary, root, wait_for};

fn main() {
    let calls: u64 = env("CALLS", "50000").parse().expect("CALLS");
    let rate: u64 = env("RATE", "1000").parse().expect("RATE");
    let (_, descriptors) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .expect("limit of descriptors");
    let anchored = calls.min(descriptors.saturating_sub(1_000) / 4);
    println!("| calls | up | resident before | with all up | after | KiB per call |");
    println!("|---|---|---|---|---|---|");
    measure("without media", "sbc.toml", calls, rate);
    measure("without media", "sbc.toml", anchored, rate);
    measure("with media", "sbc-memory.toml", anchored, rate);
}

/// Holds `calls` calls and prints a row.
fn measure(name: &str, config: &str, calls: u64, rate: u64) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = std::fs::read_to_string(root().join("tests/peers").join(config)).expect("config");
    let file = dir.path().join("sbc.toml");
    std::fs::write(&file, config.replace("@DIR@", &dir.path().to_string_lossy())).expect("write");
    let args = ["run", "--config", &file.to_string_lossy()];
    let mut node = pinned(0, &binary("sbc-node").to_string_lossy(), &args, dir.path());
    wait_for("the node to listen", Duration::from_secs(20), || udp_bound(5080).then_some(()));
    let scenarios = root().join("tests/scenarios");
    let sipp = |name: &str, words: &str| {
        let file = scenarios.join(name);
        let mut args = vec!["-sf".to_owned(), file.to_string_lossy().into_owned()];
        args.extend(words.split_whitespace().map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        pinned(1, "sipp", &args, dir.path())
    };
    let common = "-i 127.0.0.1 -nostdin -skip_rlimit -buff_size 4194304";
    let mut uas = sipp("uas-answer.xml", &format!("{common} -p 7070"));
    wait_for("the callee to listen", Duration::from_secs(5), || udp_bound(7070).then_some(()));
    let before = resident_kib(node.id());
    let hold = (calls / rate + 30) * 1000;
    let mut uac = sipp(
        "uac-load.xml",
        &format!(
            "{common} -p 6060 -s 1000 -r {rate} -m {calls} -l {calls} -d {hold} 127.0.0.1:5080"
        ),
    );
    let up = || {
        let socket = dir.path().join("sbc.sock");
        let out = std::process::Command::new(binary("sbcctl"))
            .args(["--socket", &socket.to_string_lossy(), "--output", "json", "status"])
            .output()
            .expect("sbcctl");
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        status["calls"].as_u64().unwrap_or(0)
    };
    wait_for("all calls to be up", Duration::from_secs(calls / rate + 60), || {
        (up() >= calls).then_some(())
    });
    let full = resident_kib(node.id());
    uac.wait().expect("sipp");
    wait_for("all calls to be over", Duration::from_secs(60), || (up() == 0).then_some(()));
    let after = resident_kib(node.id());
    end(&mut uas);
    end(&mut node);
    println!(
        "| {name} | {calls} | {before} KiB | {full} KiB | {after} KiB | {:.1} |",
        (full - before) as f64 / calls as f64
    );
}
