//! Docker, as the README has it: the image built by it, one node alone with its health and its rights, and
//! the compose file's three nodes with a call. The daemon is the test's own, in a network namespace of its
//! own; it touches neither the machine's Docker nor its firewall.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sbc_tests::net::ip;
use sbc_tests::{can_make_namespaces, root, skip_tool, wait_for};
use tempfile::TempDir;

use super::compose::{call, copied};
use super::image::binaries;
use super::{have, run};

const LONG: Duration = Duration::from_secs(90);

struct Docker {
    dir: TempDir,
    space: String,
    daemon: Child,
}

impl Docker {
    /// `Err` with the daemon's last words where it does not run here.
    fn start() -> Result<Docker, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        let space = format!("sbctd{}", std::process::id());
        ip(&format!("netns add {space}"));
        ip(&format!("-n {space} link set lo up"));
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let log = std::fs::File::create(at("log")).expect("log");
        // Not by `ip netns exec`, which hides the control groups below /sys.
        let daemon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{space}"))
            .arg("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "-H", &format!("unix://{}", at("docker.sock"))])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .args(["--ip-masq=false", "--bridge=none", "--storage-driver=vfs"])
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("nsenter");
        let mut docker = Docker { dir, space, daemon };
        let answers = wait_for("the daemon to answer or to end", LONG, || {
            if docker.daemon.try_wait().expect("wait").is_some() {
                return Some(false);
            }
            docker
                .output("docker", &["info", "-f", "{{.ServerVersion}}"])
                .status
                .success()
                .then_some(true)
        });
        if answers {
            return Ok(docker);
        }
        let log = std::fs::read_to_string(docker.dir.path().join("log")).unwrap_or_default();
        Err(log.lines().last().unwrap_or_default().to_owned())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let socket = self.dir.path().join("docker.sock");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        command
    }

    fn output(&self, program: &str, words: &[&str]) -> Output {
        self.command(program).args(words).output().expect("docker")
    }

    fn docker(&self, words: &[&str]) -> String {
        run(self.command("docker").args(words)).trim().to_owned()
    }

    fn compose(&self, image: &str, words: &[&str]) -> Command {
        let dir = self.dir.path().join("compose");
        let mut command = self.command("docker-compose");
        command.arg("-f").arg(dir.join("compose.yaml")).arg("-f").arg(dir.join("less.yaml"));
        command.args(words).env("SBC_IMAGE", image);
        command
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let left = self.output("docker", &["ps", "-aq"]);
        for id in String::from_utf8_lossy(&left.stdout).split_whitespace() {
            if std::thread::panicking() {
                let logs = self.output("docker", &["logs", "--tail", "40", id]);
                eprintln!("--- {id}:\n{}", String::from_utf8_lossy(&logs.stderr));
            }
            self.output("docker", &["rm", "-f", id]);
        }
        // By the signal it ends its containerd too.
        if let Ok(pid) = i32::try_from(self.daemon.id()) {
            // It may have ended by itself.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        drop(self.daemon.wait());
        drop(Command::new("ip").args(["netns", "del", &self.space]).output());
    }
}

#[test]
fn docker_builds_the_image_and_runs_it_alone_and_by_compose() {
    if !can_make_namespaces("docker") {
        return;
    }
    for program in ["dockerd", "docker", "nsenter"] {
        if !have(program) {
            return skip_tool("docker", &format!("no {program} here: make deps installs it"));
        }
    }
    let docker = match Docker::start() {
        Ok(docker) => docker,
        Err(why) => return skip_tool("docker", &format!("its daemon does not run here: {why}")),
    };
    let image = format!("sbc-test:{}", std::process::id());
    let script = root().join("deploy/image/build.sh").to_string_lossy().into_owned();
    run(docker.command(&script).arg(binaries()).arg(&image).env("ENGINE", "docker"));
    let user = docker.docker(&["image", "inspect", "-f", "{{.Config.User}}", &image]);
    assert_eq!(user, "10001:10001", "not root");
    alone(&docker, &image);
    if have("docker-compose") {
        composed(&docker, &image);
    } else {
        skip_tool("docker-compose", "none here: make deps installs it");
    }
}

/// A node without a cluster: it gets what it was given and no more, is healthy, takes a call's request,
/// and ends by SIGTERM.
fn alone(docker: &Docker, image: &str) {
    let config = std::fs::read_to_string(root().join("deploy/examples/loopback.toml"));
    let config = config.expect("example").replace("/tmp/sbc/admin.sock", "/run/sbc/admin.sock");
    let file = docker.dir.path().join("alone.toml");
    std::fs::write(&file, config.replace("/tmp/sbc", "/var/lib/sbc")).expect("write");
    let mount = format!("{}:/etc/sbc/sbc.toml:ro", file.display());
    let hardened = ["--network", "none", "--read-only", "--cap-drop", "all"];
    let checked = [&["run", "--rm", "-v", &mount], &hardened[..], &[image]].concat();
    docker.docker(&[&checked[..], &["check", "/etc/sbc/sbc.toml"]].concat());
    let rights = ["--cap-add", "NET_ADMIN", "--ulimit", "nofile=20000:20000"];
    let run = ["run", "-d", "--name", "alone", "-v", &mount];
    docker.docker(&[&run, &hardened[..], &rights, &[image]].concat());
    wait_for("the container to be healthy", LONG, || {
        let state = docker.docker(&["inspect", "-f", "{{.State.Health.Status}}", "alone"]);
        (state == "healthy").then_some(())
    });
    let pid = docker.docker(&["inspect", "-f", "{{.State.Pid}}", "alone"]);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    assert!(status.contains("Uid:\t10001\t"), "not root: {status}");
    // The file's capabilities came through Docker's COPY: NET_ADMIN, and nothing that was not given.
    assert!(status.contains("CapPrm:\t0000000000001000"), "{status}");
    let call = ["exec", "alone", "/usr/bin/sbcctl", "call", "--via", "127.0.0.1:5060"];
    let answered = docker.docker(&[&call[..], &["--any-answer", "sip:1@127.0.0.1"]].concat());
    assert!(answered.starts_with("INVITE sip:1@127.0.0.1: "), "{answered}");
    docker.docker(&["stop", "-t", "20", "alone"]);
    let code = docker.docker(&["inspect", "-f", "{{.State.ExitCode}}", "alone"]);
    assert_eq!(code, "0", "it ended by itself");
    docker.docker(&["rm", "-v", "alone"]);
}

/// The README's commands, by Debian's docker-compose.
fn composed(docker: &Docker, image: &str) {
    copied(docker.dir.path());
    run(&mut docker.compose(image, &["up", "-d"]));
    wait_for("three nodes in one cluster", LONG, || {
        let words = ["exec", "-T", "sbc-0", "sbcctl", "--output", "json", "cluster", "status"];
        let out = docker.compose(image, &words).output().expect("docker-compose");
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        let up = status["nodes"].as_array()?.iter().filter(|n| n["state"] == "up").count();
        (up == 3 && status["quorum"] == true).then_some(())
    });
    call(Path::new(docker.dir.path()), &docker.space);
    run(&mut docker.compose(image, &["down", "-v"]));
    assert_eq!(docker.docker(&["ps", "-aq"]), "", "down leaves nothing");
    assert_eq!(docker.docker(&["volume", "ls", "-q"]), "", "nor a volume");
}
