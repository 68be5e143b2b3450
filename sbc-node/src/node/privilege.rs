//! Capabilities: what the binary's file was permitted is put into effect. A file that asks for them to
//! be in effect at once could not be started at all where a container is not given them.

use std::io;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Puts every permitted capability of this thread into effect; threads made later have them too.
///
/// # Errors
/// When the kernel refuses, which it does not for what is permitted.
pub(super) fn raise() -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 of the interface reads the header and writes two elements of data.
    let read = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    if data.iter().all(|d| d.effective == d.permitted) {
        return Ok(());
    }
    for half in &mut data {
        half.effective = half.permitted;
    }
    // SAFETY: as above; the kernel reads both.
    let written = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    match written {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn raising_what_is_permitted_is_allowed() {
        super::raise().expect("capset");
        super::raise().expect("again");
    }
}
