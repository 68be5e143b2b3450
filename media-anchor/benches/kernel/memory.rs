//! Memory of a flow in the kernel and of what the daemon keeps of it.
//!
//! What grows from one number of flows to another, four times as large: by nftables the caches of set
//! elements and the per-CPU area (counters), and the resident memory of the process, which is the same
//! either way; by eBPF what the kernel says that the maps take, whose buckets are there from the start.

use std::fs;

use media_anchor::kernel::Way;

use crate::cpu::opened;
use crate::footprint::{each, resident, slab};
use crate::traffic;

const CALLS: [usize; 2] = [5_000, 20_000];
/// As many at once as the driver would gather.
const AT_ONCE: usize = 64;

/// Prints a line per way.
pub(crate) fn run() {
    println!("bytes per flow, from {} to {} flows", 2 * CALLS[0], 2 * CALLS[1]);
    let (_, [slabs, counters, process]) =
        grown(Way::Nftables, || [elements(), per_cpu(), resident()]);
    println!(
        "nftables    {slabs:.0} in slab caches, {counters:.0} in the per-CPU area, {process:.0} resident"
    );
    let (empty, [in_maps]) = grown(Way::Ebpf, || [maps()]);
    let kib = empty[0] / 1024;
    println!("eBPF        {in_maps:.0} in its maps, {kib} KiB of buckets from the start");
}

/// What is measured before any flow, and what each flow adds to it.
fn grown<const N: usize>(
    way: Way,
    measure: impl Fn() -> [usize; N] + Sync,
) -> ([usize; N], [f64; N]) {
    let net = traffic::net(true);
    let mut offload = opened(&net.sbc, way);
    net.sbc.run(|| {
        let empty = measure();
        let [small, large] = [0..CALLS[0], CALLS[0]..CALLS[1]].map(|calls| {
            for first in calls.clone().step_by(AT_ONCE) {
                let until = calls.end.min(first + AT_ONCE);
                traffic::install_marked(offload.as_mut(), first..until, Some(46));
            }
            measure()
        });
        drop(offload);
        let more = 2 * (CALLS[1] - CALLS[0]);
        (empty, std::array::from_fn(|n| each(small[n], large[n], more)))
    })
}

/// Bytes in the caches that set elements come from: those of accounted memory, where there are any.
fn elements() -> usize {
    match slab(|name| name.starts_with("kmalloc-cg-")) {
        0 => slab(|name| name.starts_with("kmalloc-")),
        bytes => bytes,
    }
}

fn per_cpu() -> usize {
    let info = fs::read_to_string("/proc/meminfo").expect("procfs");
    let line = info.lines().find_map(|line| line.strip_prefix("Percpu:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

/// Bytes of the BPF maps that this process holds.
fn maps() -> usize {
    let files = fs::read_dir("/proc/self/fdinfo").expect("procfs").flatten();
    let bytes = files.filter_map(|file| {
        let info = fs::read_to_string(file.path()).ok()?;
        info.lines().find(|line| line.starts_with("map_type:"))?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"))?;
        bytes.trim().parse::<usize>().ok()
    });
    bytes.sum()
}
