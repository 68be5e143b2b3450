//! Builds the TC program of the kernel relay with clang, where there is one.
//!
//! Without clang (or the kernel's headers) the crate builds all the same, with an empty object:
//! the eBPF way then says at start that it was not built.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "src/kernel/ebpf/relay.bpf.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let object = out.join("relay.bpf.o");
    if let Err(why) = compile(&object) {
        println!("cargo::warning=kernel relay built without its eBPF program: {why}");
        std::fs::write(&object, []).expect("OUT_DIR can be written");
    }
}

fn compile(object: &Path) -> Result<(), String> {
    let clang = std::env::var_os("CLANG").unwrap_or_else(|| "clang".into());
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let output = Command::new(&clang)
        .args(["-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"])
        // Debian keeps <asm/types.h> by architecture, where clang does not look for bpf.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", SOURCE, "-o"])
        .arg(object)
        .output()
        .map_err(|error| format!("{}: {error}", clang.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(message.lines().next().unwrap_or("clang failed").to_owned())
}
