//! CPU clocks: of this thread, of the process, of the ksoftirqd threads.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock).expect("a CPU clock");
    Duration::from(time)
}

/// CPU time of the calling thread.
pub(crate) fn thread() -> Duration {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Run time of the threads of a process whose name passes `wanted`.
pub(crate) fn threads(pid: u32, wanted: impl Fn(&str) -> bool) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let times = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        let nanos = stat.split(' ').next()?.parse().ok()?;
        wanted(name.trim()).then_some(Duration::from_nanos(nanos))
    });
    times.sum()
}

/// CPU time of all ksoftirqd threads.
pub(crate) fn softirq() -> Duration {
    let mut total = 0;
    for entry in fs::read_dir("/proc").expect("procfs").flatten() {
        let path = entry.path();
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.starts_with("ksoftirqd/") {
            let stat = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            total += stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(total)
}

/// CPU time of the ksoftirqd thread of one CPU, cheap enough to be read around a slice.
pub(crate) struct Ksoftirqd {
    schedstat: fs::File,
}

impl Ksoftirqd {
    pub(crate) fn of(cpu: usize) -> Ksoftirqd {
        let wanted = format!("ksoftirqd/{cpu}");
        let found = fs::read_dir("/proc").expect("procfs").flatten().find(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            comm.trim() == wanted
        });
        let path = found.expect("every CPU has one").path().join("schedstat");
        Ksoftirqd { schedstat: fs::File::open(path).expect("schedstat") }
    }

    pub(crate) fn nanos(&self) -> u64 {
        let mut text = [0; 64];
        let len = self.schedstat.read_at(&mut text, 0).unwrap_or(0);
        let text = std::str::from_utf8(&text[..len]).unwrap_or_default();
        text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }
}

/// Pins the calling thread to a CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("pin");
}

/// The middle of some numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The number that a tenth of them do not exceed.
pub(crate) fn decile(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 10]
}

/// The number that a quarter of them do not exceed.
pub(crate) fn quartile(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 4]
}
