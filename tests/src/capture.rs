//! Packet captures with tcpdump, read back with tshark.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::proc::Proc;

/// A running capture on one device of one namespace.
pub struct Capture {
    proc: Proc,
    pub file: PathBuf,
}

impl Capture {
    /// Starts capturing and returns when the device is open.
    pub fn start(ns: &str, dir: &Path, device: &str) -> Capture {
        let file = dir.join(format!("{ns}-{device}.pcap"));
        let args = [
            "-U",
            "--immediate-mode",
            "-n",
            "-i",
            device,
            "-w",
            &file.to_string_lossy(),
            "-Z",
            "root",
            "-B",
            "8192",
        ]
        .map(str::to_owned);
        let proc = Proc::start(ns, dir, &format!("tcpdump-{ns}"), Path::new("tcpdump"), &args);
        proc.wait_output("listening on", Duration::from_secs(10));
        Capture { proc, file }
    }

    /// Stops and returns what was caught.
    pub fn stop(mut self) -> Pcap {
        self.proc.signal(Signal::SIGTERM);
        self.proc.wait(Duration::from_secs(10));
        Pcap { file: self.file.clone() }
    }
}

/// A finished capture.
pub struct Pcap {
    pub file: PathBuf,
}

impl Pcap {
    /// Runs tshark with a display filter and returns the given fields, one row per packet.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&self.file).args([
            "-n",
            "-Y",
            filter,
            "-T",
            "fields",
            "-E",
            "separator=/t",
        ]);
        command.args(["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]);
        for field in fields {
            command.args(["-e", field]);
        }
        let out = command.output().expect("tshark");
        assert!(out.status.success(), "tshark: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect()
    }

    /// Number of packets that match a display filter.
    pub fn count(&self, filter: &str) -> usize {
        self.fields(filter, &["frame.number"]).len()
    }

    /// Where `needle` stands in the raw bytes of any packet (case-insensitively).
    pub fn contains(&self, needle: &str) -> bool {
        let bytes = std::fs::read(&self.file).expect("read capture");
        let needle = needle.to_ascii_lowercase();
        bytes.windows(needle.len()).any(|w| w.eq_ignore_ascii_case(needle.as_bytes()))
    }
}
