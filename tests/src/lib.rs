//! The harness of the end-to-end tests: network namespaces, real nodes, real peers, captures.
//!
//! Traffic stays inside the namespaces that a test made; they go away with the test. Nothing here
//! knows how the SBC works inside: it is driven by its configuration file, its sockets and `sbcctl`.

pub mod agent;
pub mod baresip;
pub mod capture;
pub mod load;
pub mod mmdb;
pub mod net;
pub mod node;
pub mod proc;
pub mod rtp;
pub mod sipp;

use std::time::{Duration, Instant};

/// Waits until `condition` yields a value, looking every 20 ms, and panics with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");

        std::thread::sleep(Duration::from_millis(20));
    }
}

/// True where network namespaces can be made; otherwise notes the skip for the summary line.
pub fn can_make_namespaces(test: &str) -> bool {
    if std::env::var_os("SBC_TEST_NO_NETNS").is_none() && nix::unistd::geteuid().is_root() {
        return true;
    }
    skip(test, "no network namespaces here (not root, or user namespaces are off)");
    false
}

/// Notes a test that lacks a tool which comes from npm, PyPI or a container runtime: it is printed
/// and counted as skipped, and CI goes on, because a registry that is away is no fault of ours.
pub fn skip_tool(test: &str, reason: &str) {
    skip(&format!("tool: {test}"), reason);
}

/// Notes a skipped test with its reason; the runner prints it and CI fails on it.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    eprintln!("skipped {test}: {reason}");
    if let Some(path) = std::env::var_os("SBC_TEST_SKIPS")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        // The runner counts lines; a line that cannot be written was printed above at least.
        drop(writeln!(file, "{test}: {reason}"));
    }
}

/// The root of the source tree.
pub fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").to_path_buf()
}

/// A binary of the workspace, built for the same profile as the running test.
pub fn binary(name: &str) -> std::path::PathBuf {
    if let Some(dir) = std::env::var_os("SBC_BIN") {
        return std::path::Path::new(&dir).join(name);
    }
    let test = std::env::current_exe().expect("current exe");
    let dir = test.parent().and_then(|deps| deps.parent()).expect("target directory");
    let path = dir.join(name);
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    path
}
