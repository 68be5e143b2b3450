//! What memory is in use: of this process, and of the kernel by slab cache.
//!
//! The caches are the machine's: choose such as nothing else fills, and sizes that drown the rest.

use std::fs;

/// Resident bytes of this process.
pub(crate) fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

/// Bytes of the objects in use in the slab caches whose name passes `wanted`.
pub(crate) fn slab(wanted: impl Fn(&str) -> bool) -> usize {
    let info = fs::read_to_string("/proc/slabinfo").expect("slabinfo, as root");
    let caches = info.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|name| wanted(name))?;
        let active: usize = words.next()?.parse().ok()?;
        let size: usize = words.nth(1)?.parse().ok()?;
        Some(active * size)
    });
    caches.sum()
}

/// What a thing takes when `more` of them took `bytes` more.
pub(crate) fn each(before: usize, after: usize, more: usize) -> f64 {
    (after as f64 - before as f64) / more as f64
}
