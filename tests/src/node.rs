//! A real `sbc-node` in a namespace, with its configuration, and `sbcctl` beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::proc::Proc;
use crate::{binary, wait_for};

/// A running node.
pub struct Node {
    pub proc: Proc,
    pub ns: String,
    pub dir: PathBuf,
    socket: PathBuf,
}

impl Node {
    /// Writes `config` (with `@DIR@` replaced by the node's directory), starts the node and waits
    /// until it says that it is ready. The admin socket is `@DIR@/sbc.sock`.
    pub fn start(ns: &str, dir: &Path, name: &str, config: &str) -> Node {
        Node::start_as(ns, dir, name, config, &[])
    }

    /// As [`Node::start`], with more in its environment: `NAME=value` each.
    pub fn start_as(ns: &str, dir: &Path, name: &str, config: &str, more: &[String]) -> Node {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).expect("node directory");
        let file = dir.join("sbc.toml");
        std::fs::write(&file, config.replace("@DIR@", &dir.to_string_lossy())).expect("config");
        let program = binary("sbc-node").to_string_lossy().into_owned();
        let mut args = more.to_vec();
        args.push(program);
        args.extend(["run", "--config", &file.to_string_lossy()].map(str::to_owned));
        // It execs what it is given: the process is the node's.
        let proc = Proc::start(ns, &dir, name, Path::new("env"), &args);
        let mut node = Node { proc, ns: ns.to_owned(), socket: dir.join("sbc.sock"), dir };
        wait_for("the node to be ready", Duration::from_secs(20), || {
            assert!(node.proc.running(), "sbc-node ended at start:\n{}", node.proc.output());
            node.try_ctl("status")
        });
        node
    }

    fn run_ctl(&self, words: &str) -> std::process::Output {
        Command::new("ip")
            .args(["netns", "exec", &self.ns])
            .arg(binary("sbcctl"))
            .args(["--socket", &self.socket.to_string_lossy(), "--output", "json"])
            .args(words.split_whitespace())
            .output()
            .expect("sbcctl")
    }

    /// Runs `sbcctl` for what it does; panics with what it says when it fails.
    pub fn order(&self, words: &str) {
        let out = self.run_ctl(words);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "sbcctl {words}: {said}");
    }

    /// Runs `sbcctl` with JSON output; `None` when it fails.
    pub fn try_ctl(&self, words: &str) -> Option<Value> {
        let out = self.run_ctl(words);
        if !out.status.success() {
            return None;
        }
        serde_json::from_slice(&out.stdout).ok()
    }

    /// Runs `sbcctl` with JSON output and panics when it fails.
    pub fn ctl(&self, words: &str) -> Value {
        self.try_ctl(words).unwrap_or_else(|| panic!("sbcctl {words} failed"))
    }

    /// The sum of every counter whose name begins so, over shards and labels.
    pub fn sum(&self, name: &str) -> f64 {
        let stats = self.ctl(&format!("stats {name}"));
        let rows = stats["stats"].as_array().cloned().unwrap_or_default();
        rows.iter().filter_map(|row| row["value"].as_f64()).sum()
    }

    /// The sum of a metric over those of its labels that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> u64 {
        let reply = self.ctl(&format!("stats {name}"));
        let stats = reply["stats"].as_array().expect("a list");
        let fits = |s: &&Value| s["labels"].as_str().unwrap_or("").contains(label);
        let sum: f64 = stats.iter().filter(fits).filter_map(|s| s["value"].as_f64()).sum();
        format!("{sum:.0}").parse().expect("a count")
    }

    /// The sum of a metric over its labels; only those with `label` in them where it is not empty.
    pub fn stat(&self, name: &str, label: &str) -> f64 {
        let reply = self.ctl(&format!("stats {name}"));
        let all = reply["stats"].as_array().cloned().unwrap_or_default();
        let ours = all.iter().filter(|s| {
            s["name"] == name && s["labels"].as_str().unwrap_or_default().contains(label)
        });
        ours.filter_map(|s| s["value"].as_f64()).sum()
    }

    /// The CDRs written so far.
    pub fn cdrs(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("cdr.jsonl")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).expect("a CDR is a JSON line")).collect()
    }

    /// Waits until `n` CDRs are there.
    pub fn wait_cdrs(&self, n: usize) -> Vec<Value> {
        wait_for(&format!("{n} CDRs"), Duration::from_secs(20), || {
            let cdrs = self.cdrs();
            (cdrs.len() >= n).then_some(cdrs)
        })
    }

    /// SIGTERM, and the node must end by itself with status 0.
    pub fn stop(mut self) {
        self.proc.signal(Signal::SIGTERM);
        let status = self.proc.wait(Duration::from_secs(20));
        assert!(status.success(), "sbc-node ended with {status}");
    }
}
