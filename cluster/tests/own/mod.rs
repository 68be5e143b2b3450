//! Namespaces of a test's own: where it may mount file systems and use any port.

use std::process::Command;

const INSIDE: &str = "SBC_TEST_OWN_NAMESPACES";

/// True inside of namespaces of its own (mounts, network with `lo` up). Outside, runs the test called
/// `test` of this program again inside of such, and returns false.
pub(crate) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--net"]);
    if !nix::unistd::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let program = std::env::current_exe().expect("this program");
    let status = unshare
        .args(["sh", "-c", "PATH=$PATH:/sbin:/usr/sbin; ip link set lo up && exec \"$@\"", "sh"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare");
    assert!(status.success(), "inside of its namespaces: {status}");
    false
}
