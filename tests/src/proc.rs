//! Child processes in namespaces: started, watched through their log files, ended by their pid.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_for;

/// A running program with its output in a file. Killed when dropped.
pub struct Proc {
    child: Child,
    pub log: PathBuf,
    name: String,
}

impl Proc {
    /// Starts `program` inside namespace `ns` with stdout and stderr in `dir/name.log`.
    pub fn start(ns: &str, dir: &Path, name: &str, program: &Path, args: &[String]) -> Proc {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).expect("create log");
        let err = out.try_clone().expect("clone log");
        let child = Command::new("ip")
            .args(["netns", "exec", ns])
            .arg(program)
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|e| panic!("start {name}: {e}"));
        Proc { child, log, name: name.to_owned() }
    }

    /// `ip netns exec` execs the program, so this is the program's own pid.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pid"))
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|e| panic!("{signal} to {}: {e}", self.name));
    }

    /// What the program has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for `text` in the output.
    pub fn wait_output(&self, text: &str, limit: Duration) {
        wait_for(&format!("{text:?} from {}", self.name), limit, || {
            self.output().contains(text).then_some(())
        });
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for the end of the program.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_for(&format!("the end of {}", self.name), limit, || {
            self.child.try_wait().expect("wait")
        })
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.running() {
            // Already gone is as good as killed.
            drop(self.child.kill());
        }
        drop(self.child.wait());
        if std::thread::panicking() {
            let out = self.output();
            let tail: Vec<&str> = out.lines().rev().take(40).collect();
            eprintln!("--- last lines of {}:", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
