//! One hash map of the program, by bpf(2).
//!
//! aya makes the maps; it has no lookup-and-delete, which gives the final counters, and no walk
//! that can be put down and taken up. Keys and values are bytes here; `backend.rs` knows them.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

/// A map of `K`-byte keys and `V`-byte values.
pub(super) struct Map<const K: usize, const V: usize> {
    fd: OwnedFd,
}

/// `union bpf_attr` for commands on elements; the rest of the union is zero.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Value, or the next key.
    value: u64,
    flags: u64,
}

#[derive(Clone, Copy)]
enum Command {
    Lookup = 1,
    Update = 2,
    NextKey = 4,
    LookupAndDelete = 21,
}

const BPF_NOEXIST: u64 = 1;

impl<const K: usize, const V: usize> Map<K, V> {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Map { fd }
    }

    /// Adds an element; EEXIST when the key is there, E2BIG when the map is full.
    pub(super) fn add(&self, key: &[u8; K], value: &[u8; V]) -> Result<(), Errno> {
        // SAFETY: update reads K bytes of the key and V of the value.
        unsafe { self.call(Command::Update, key.as_ptr(), value.as_ptr().cast_mut(), BPF_NOEXIST) }
    }

    /// The value; ENOENT when it is not there.
    pub(super) fn get(&self, key: &[u8; K]) -> Result<[u8; V], Errno> {
        let mut value = [0; V];
        // SAFETY: lookup reads K bytes of the key and writes V bytes of the value.
        unsafe { self.call(Command::Lookup, key.as_ptr(), value.as_mut_ptr(), 0)? };
        Ok(value)
    }

    /// Deletes an element and gives its last value (Linux 5.14).
    pub(super) fn take(&self, key: &[u8; K]) -> Result<[u8; V], Errno> {
        let mut value = [0; V];
        // SAFETY: lookup-and-delete reads K bytes of the key and writes V bytes of the value.
        unsafe { self.call(Command::LookupAndDelete, key.as_ptr(), value.as_mut_ptr(), 0)? };
        Ok(value)
    }

    /// The key behind `key`, or the first; `None` at the end. A key that is gone starts over.
    pub(super) fn next(&self, key: Option<&[u8; K]>) -> Result<Option<[u8; K]>, Errno> {
        let mut next = [0; K];
        let from = key.map_or(std::ptr::null(), |k| k.as_ptr());
        // SAFETY: get-next-key reads K bytes of the key, or none when it is null, and writes K.
        match unsafe { self.call(Command::NextKey, from, next.as_mut_ptr(), 0) } {
            Ok(()) => Ok(Some(next)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// # Safety
    /// `key` and `value` must be what `command` reads and writes of a map with these sizes.
    unsafe fn call(
        &self,
        command: Command,
        key: *const u8,
        value: *mut u8,
        flags: u64,
    ) -> Result<(), Errno> {
        let attr = ElementAttr {
            map_fd: self.fd.as_raw_fd().unsigned_abs(),
            pad: 0,
            key: key.addr() as u64,
            value: value.expose_provenance() as u64,
            flags,
        };
        // SAFETY: the attribute lives across the call and its size is given; the caller vouches
        // for the pointers in it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_int,
                &raw const attr,
                size_of::<ElementAttr>(),
            )
        };
        Errno::result(result).map(drop)
    }
}
