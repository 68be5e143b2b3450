//! The compose file as the README has it: key, `up`, three nodes in one cluster, a call, `down`.
//!
//! Debian 12's podman-compose knows no fixed addresses: the one of PyPI is taken (`make deps`). Its network
//! lives in a namespace of its own, so that the machine's stays as it is.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use sbc_tests::net::ip;
use sbc_tests::proc::Proc;
use sbc_tests::{can_make_namespaces, root, skip_tool, wait_for};

use super::image::Engine;
use super::{have, run, tools};

const LONG: Duration = Duration::from_secs(90);

/// What this machine allows less of than the compose file asks for.
const LESS: &str = "{ulimits: {nofile: {soft: 20000, hard: 20000}, nproc: 1000}}";

struct Compose<'a> {
    engine: &'a Engine,
    image: String,
}

impl Compose<'_> {
    fn try_run(&self, words: &str) -> Output {
        let dir = self.engine.path().join("compose");
        let space = format!("--net=/run/netns/{}", self.engine.name());
        let mut command = self.engine.command("nsenter");
        command.arg(space).arg(tools().join("venv/bin/python"));
        command.arg(tools().join("venv/bin/podman-compose"));
        command.args(["-p", self.engine.name(), "-f"]).arg(dir.join("compose.yaml"));
        command.arg("-f").arg(dir.join("less.yaml")).args(words.split(' '));
        command.env("SBC_IMAGE", &self.image).output().expect("podman-compose")
    }

    fn run(&self, words: &str) -> String {
        let out = self.try_run(words);
        let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "podman-compose {words}: {stdout}\n{stderr}");
        stdout
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.try_run("logs");
            eprintln!("{}", String::from_utf8_lossy(&logs.stderr));
            drop(self.try_run("down -v -t 0"));
        }
    }
}

#[test]
fn the_compose_file_makes_a_cluster_of_three_that_carries_a_call() {
    if !can_make_namespaces("compose") {
        return;
    }
    for program in ["podman", "buildah", "runc", "nsenter"] {
        if !have(program) {
            return skip_tool("compose", &format!("no {program} here"));
        }
    }
    if !tools().join("venv/bin/podman-compose").exists() {
        return skip_tool("compose", "no podman-compose here: make deps installs it from PyPI");
    }
    let engine = Engine::new();
    let Some(backend) = ["/usr/lib/podman/netavark", "/usr/lib/cni/bridge"]
        .into_iter()
        .find(|program| Path::new(program).exists())
    else {
        return skip_tool("compose", "podman has neither netavark nor CNI plugins");
    };
    let backend = if backend.ends_with("netavark") { "netavark" } else { "cni" };
    engine.configure(&format!(
        "[network]\nnetwork_backend = \"{backend}\"\nnetwork_config_dir = \"{}\"\n",
        engine.path().join("networks").display()
    ));
    copied(engine.path());
    let space = engine.name().to_owned();
    ip(&format!("netns add {space}"));
    ip(&format!("-n {space} link set lo up"));
    let compose = Compose { engine: &engine, image: engine.image() };
    compose.run("up -d");
    let status = || {
        let out = compose.try_run("exec -T sbc-0 sbcctl --output json cluster status");
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        let up = status["nodes"].as_array()?.iter().filter(|n| n["state"] == "up").count();
        (up == 3 && status["quorum"] == true).then_some(())
    };
    wait_for("three nodes in one cluster", LONG, status);
    call(engine.path(), &space);
    compose.run("down -v");
    let left = engine.podman(&["ps", "-a", "-q"]);
    assert!(left.stdout.is_empty(), "down leaves nothing");
}

/// The compose files below `place`, with a key, and what this machine allows less of.
pub(super) fn copied(place: &Path) {
    let dir = place.join("compose");
    run(Command::new("cp").arg("-r").arg(root().join("deploy/compose")).arg(&dir));
    drop(std::fs::remove_file(dir.join("join.key")));
    run(&mut Command::new(dir.join("key.sh")));
    let less = (0..3).map(|n| format!("  sbc-{n}: {LESS}\n")).collect::<String>();
    std::fs::write(dir.join("less.yaml"), format!("services:\n{less}")).expect("write");
}

/// The configuration's peers are addresses of the network that compose made: here they are.
pub(super) fn call(dir: &Path, space: &str) {
    let links =
        run(Command::new("ip").args(["-n", space, "-br", "link", "show", "type", "bridge"]));
    let bridge = links.split(' ').next().expect("a bridge").to_owned();
    for host in [100, 200] {
        ip(&format!("-n {space} addr add 172.30.7.{host}/24 dev {bridge}"));
    }
    let sipp = |name: &str, words: &str| {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        Proc::start(space, dir, name, Path::new("sipp"), &words)
    };
    let scenario = root().join("tests/scenarios/uas-answer.xml");
    let mut uas = sipp(
        "uas",
        &format!("-sf {} -i 172.30.7.200 -p 5060 -m 1 -nostdin -skip_rlimit", scenario.display()),
    );
    let mut uac = sipp(
        "uac",
        "-sn uac 172.30.7.11:5060 -i 172.30.7.100 -p 5060 -s 4912345 -m 1 -d 500 -nostdin -skip_rlimit -timeout 30s",
    );
    let ended = uac.wait(Duration::from_secs(40));
    assert!(ended.success(), "the call failed: {}", uac.output());
    assert!(uas.wait(Duration::from_secs(20)).success(), "it arrived");
}
