//! What the benchmarks share: pinned processes, CPU and memory of process trees, SIPp's figures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::root;

/// An environment variable or its default.
pub fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The same as a number.
pub fn number(name: &str, default: &str) -> u64 {
    env(name, default).parse().unwrap_or_else(|_| panic!("{name} is no number"))
}

/// The middle value; NaN of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Starts a program on one core, its output thrown away.
pub fn pinned(core: u32, program: &str, args: &[&str], dir: &Path) -> Child {
    Command::new("taskset")
        .args(["-c", &core.to_string(), program])
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// SIPp puts its traces beside the scenario's base name.
pub fn find(dir: &Path, suffix: &str) -> Option<PathBuf> {
    for place in [dir.to_path_buf(), root().join("tests/scenarios")] {
        let path = place.join(suffix);
        if path.exists() {
            return Some(path);
        }
    }
    None
}

/// Whether something is bound to a UDP port of this namespace (IPv4).
pub fn udp_bound(port: u16) -> bool {
    let local = format!(":{port:04X}");
    // The second column; the third is whom a socket is connected to.
    let at = |line: &str| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&local));
    std::fs::read_to_string("/proc/net/udp").unwrap_or_default().lines().any(at)
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// SIGTERM, and SIGKILL five seconds later.
pub fn end(child: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
    // It may have ended by itself.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let limit = Instant::now() + Duration::from_secs(5);
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > limit {
            drop(child.kill());
            drop(child.wait());
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Seconds of CPU of the process trees so far, ended children included.
pub fn cpu(processes: &[Child]) -> f64 {
    let roots: Vec<u32> = processes.iter().map(Child::id).collect();
    let mut parents: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let field: Vec<u64> = rest.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
        let ticks = field[11] + field[12] + field[13] + field[14];
        parents.insert(pid, (u32::try_from(field[1]).unwrap_or(0), ticks));
    }
    let mut sum = 0;
    for (&pid, &(_, ticks)) in &parents {
        let mut at = pid;
        while at > 1 && !roots.contains(&at) {
            at = parents.get(&at).map_or(0, |p| p.0);
        }
        if roots.contains(&at) {
            sum += ticks;
        }
    }
    sum as f64 / 100.0
}

/// Successful and failed calls from SIPp's statistics.
pub fn outcome(file: &Path) -> (u64, u64) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines();
    let (Some(head), Some(last)) = (lines.next(), lines.last()) else { return (0, 0) };
    let column = |name: &str| {
        head.split(';')
            .position(|h| h == name)
            .and_then(|i| last.split(';').nth(i)?.parse().ok())
            .unwrap_or(0)
    };
    (column("SuccessfulCall(C)"), column("FailedCall(C)"))
}

/// Median and 99th percentile of INVITE to 200, in milliseconds.
pub fn delays(file: &Path) -> (f64, f64) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    drop(std::fs::remove_file(file));
    let mut values: Vec<f64> =
        text.lines().skip(1).filter_map(|l| l.split(';').nth(1)?.parse().ok()).collect();
    values.sort_by(f64::total_cmp);
    let at = |q: usize| values.get(values.len() * q / 100).copied().unwrap_or(f64::NAN);
    (at(50), at(99))
}
