//! The image: what is in it, that it is the same when made twice, and three containers of it on one
//! network that make a cluster and carry a call.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sbc_tests::proc::Proc;
use sbc_tests::{binary, can_make_namespaces, root, skip_tool, wait_for};

use super::{have, run};

pub(super) fn binaries() -> PathBuf {
    binary("sbc-node").parent().expect("folder").to_path_buf()
}

#[test]
fn the_image_holds_the_binaries_their_libraries_and_a_bill() {
    let dir = tempfile::tempdir().expect("tempdir");
    let make = |name: &str| {
        let out = dir.path().join(name);
        let script = root().join("deploy/image/rootfs.sh");
        run(Command::new(script).arg(binaries()).arg(&out).env("SOURCE_DATE_EPOCH", "1700000000"));
        out
    };
    let (one, two) = (make("one"), make("two"));
    run(Command::new("diff").arg("-r").arg(&one).arg(&two));
    let listed = |dir: &Path| {
        run(Command::new("find").arg(".").args(["-printf", "%p %m %s %T@\n"]).current_dir(dir))
    };
    assert_eq!(listed(&one), listed(&two), "same files, modes, sizes and times");
    let bill = std::fs::read_to_string(one.join("usr/share/sbc/sbom.cdx.json")).expect("bill");
    let bill: serde_json::Value = serde_json::from_str(&bill).expect("JSON");
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let names: Vec<&str> = bill["components"]
        .as_array()
        .expect("components")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    for name in ["tokio", "raft", "sbc-node", "/usr/bin/sbc-node"] {
        assert!(names.contains(&name), "{name} is not in the bill");
    }
    for name in ["insta", "proptest"] {
        assert!(!names.contains(&name), "{name} is for tests only");
    }
    assert!(!one.join("bin/sh").exists() && !one.join("usr/bin/sh").exists(), "no shell");
    // Nothing is missing: they start with that root alone.
    if nix::unistd::geteuid().is_root() {
        for program in ["sbc-node", "sbcctl"] {
            let at = format!("/usr/bin/{program}");
            let out = run(Command::new("chroot").arg(&one).arg(at).arg("--version"));
            assert!(out.contains("0."), "{out}");
        }
    }
}

/// What podman and buildah need inside of tests: their own storage, and nothing of the host's limits.
pub(super) struct Engine {
    dir: tempfile::TempDir,
    subnet: String,
    network: String,
    containers: Vec<String>,
}

impl Engine {
    pub(super) fn new() -> Engine {
        let dir = tempfile::tempdir().expect("tempdir");
        let write = |name: &str, text: String| {
            std::fs::write(dir.path().join(name), text).expect("write");
        };
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        write(
            "containers.conf",
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=1000:1000\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n"
                .to_owned(),
        );
        write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
                at("graph"),
                at("run")
            ),
        );
        write("policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#.to_owned());
        let id = std::process::id();
        let subnet = format!("10.{}.{}", 100 + id % 100, id / 100 % 250);
        Engine { dir, subnet, network: format!("sbct{id}"), containers: Vec::new() }
    }

    /// Where it keeps everything; goes with it.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds to podman's configuration.
    pub(super) fn configure(&self, more: &str) {
        let file = self.dir.path().join("containers.conf");
        let text = std::fs::read_to_string(&file).expect("read");
        std::fs::write(&file, text + more).expect("write");
    }

    /// The name of its network, and the beginning of those of its containers.
    pub(super) fn name(&self) -> &str {
        &self.network
    }

    /// A container to be removed at the end.
    pub(super) fn started(&mut self, name: String) {
        self.containers.push(name);
    }

    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("CONTAINERS_CONF", self.dir.path().join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir.path().join("storage.conf"));
        command
    }

    pub(super) fn podman(&self, words: &[&str]) -> std::process::Output {
        self.command("podman").args(words).output().expect("podman")
    }

    /// Builds the image as an operator does; its name.
    pub(super) fn image(&self) -> String {
        self.image_named(&format!("localhost/sbc-test:{}", std::process::id()))
    }

    fn image_named(&self, image: &str) -> String {
        let mut build = self.command(&root().join("deploy/image/build.sh").to_string_lossy());
        run(build.arg(binaries()).arg(image).env("ENGINE", "buildah"));
        image.to_owned()
    }

    /// The way into a container's network, for programs of the host.
    fn pid(&self, name: &str) -> String {
        let out = self.podman(&["inspect", "-f", "{{.State.Pid}}", name]);
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for name in &self.containers {
            if std::thread::panicking() {
                let logs = self.podman(&["logs", name]);
                eprintln!("--- {name}:\n{}", String::from_utf8_lossy(&logs.stderr));
            }
            drop(self.podman(&["rm", "-f", "-t", "0", name]));
        }
        drop(Command::new("ip").args(["link", "del", &self.network]).output());
        drop(Command::new("ip").args(["netns", "del", &self.network]).output());
    }
}

#[test]
fn three_containers_make_a_cluster_and_carry_a_call() {
    if !can_make_namespaces("containers") {
        return;
    }
    if !have("buildah") || !have("podman") || !have("runc") {
        return skip_tool("containers", "no buildah, podman and runc here");
    }
    let mut engine = Engine::new();
    let image = engine.image();
    let shown = engine.podman(&["image", "inspect", &image]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("inspect");
    assert_eq!(shown[0]["Config"]["User"], "10001:10001", "not root");
    let again = engine.image_named("localhost/sbc-again:1");
    let again = engine.podman(&["image", "inspect", &again]);
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).expect("inspect");
    for what in ["Id", "Digest"] {
        assert!(shown[0][what].is_string());
        assert_eq!(shown[0][what], again[0][what], "built twice it is the same image: {what}");
    }

    // Containers without a network of podman's: each gets a wire to one bridge of ours.
    let bridge = engine.network.clone();
    sbc_tests::net::ip(&format!("netns add {bridge}"));
    sbc_tests::net::ip(&format!("-n {bridge} link add br0 type bridge"));
    sbc_tests::net::ip(&format!("-n {bridge} link set br0 up"));
    sbc_tests::net::ip(&format!("-n {bridge} link set lo up"));
    let net = engine.subnet.clone();
    for host in [100, 200] {
        sbc_tests::net::ip(&format!("-n {bridge} addr add {net}.{host}/24 dev br0"));
    }
    let config = std::fs::read_to_string(root().join("deploy/compose/sbc.toml")).expect("config");
    // Without a network of podman's there is no resolv.conf either: a node bears that.
    let config = config.replace("172.30.7", &net);
    std::fs::write(engine.dir.path().join("sbc.toml"), config).expect("write");
    std::fs::write(engine.dir.path().join("join.key"), "k".repeat(64)).expect("write");
    let at = |name: &str| engine.dir.path().join(name).to_string_lossy().into_owned();
    let mounts = [
        format!("{}:/etc/sbc/sbc.toml:ro", at("sbc.toml")),
        format!("{}:/etc/sbc/join.key:ro", at("join.key")),
    ];
    let names: Vec<String> = (0..3).map(|n| format!("{bridge}-sbc-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let (hostname, ip) = (format!("sbc-{n}"), format!("NODE_IP={net}.{}", 10 + n));
        let place = |of: &str| {
            let dir = engine.dir.path().join(format!("{of}-{n}"));
            std::fs::create_dir(&dir).expect("a folder");
            // For the image's user, whom the host does not know.
            let anyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(&dir, anyone).expect("permissions");
            dir.to_string_lossy().into_owned()
        };
        let places =
            [format!("{}:/run/sbc", place("run")), format!("{}:/var/lib/sbc", place("data"))];
        // The last one is given what media in the kernel needs: the file's capabilities bring it to a
        // user other than root, which no-new-privileges would forbid.
        let rights = match n {
            2 => ["--cap-add", "NET_ADMIN,BPF,PERFMON"],
            _ => ["--security-opt", "no-new-privileges"],
        };
        let words = [
            "create",
            "--name",
            name,
            "--hostname",
            &hostname,
            "--network",
            "none",
            "--read-only",
            "--cap-drop",
            "all",
            rights[0],
            rights[1],
            "--env",
            &ip,
            "--volume",
            &mounts[0],
            "--volume",
            &mounts[1],
            "--volume",
            &places[0],
            "--volume",
            &places[1],
            &image,
        ];
        let made = engine.podman(&words);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        engine.containers.push(name.clone());
        let init = engine.podman(&["init", name]);
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        // Between init and start the container has its namespaces and does not run yet.
        let pid = engine.pid(name);
        let (space, wire) = (format!("{bridge}n{n}"), format!("w{n}"));
        run(Command::new("ip").args(["netns", "attach", &space, &pid]));
        sbc_tests::net::ip(&format!(
            "link add {wire} netns {bridge} type veth peer name eth0 netns {space}"
        ));
        sbc_tests::net::ip(&format!("-n {bridge} link set {wire} master br0 up"));
        sbc_tests::net::ip(&format!("-n {space} addr add {net}.{}/24 dev eth0", 10 + n));
        sbc_tests::net::ip(&format!("-n {space} link set eth0 up"));
        let started = engine.podman(&["start", name]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        drop(Command::new("ip").args(["netns", "del", &space]).output());
    }
    let ctl = |name: &str, words: &[&str]| {
        let all = [&["exec", name, "/usr/bin/sbcctl", "--output", "json"], words].concat();
        let out = engine.podman(&all);
        serde_json::from_slice::<serde_json::Value>(&out.stdout).ok()
    };
    for name in &names {
        wait_for(&format!("{name} in its cluster"), Duration::from_secs(90), || {
            let status = ctl(name, &["cluster", "status"])?;
            let up = status["nodes"].as_array()?.iter().filter(|n| n["state"] == "up").count();
            (up == 3 && status["quorum"] == true).then_some(())
        });
    }
    for (n, name) in names.iter().enumerate() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", engine.pid(name)));
        let status = status.expect("a process");
        assert!(status.contains("Uid:\t10001\t"), "not root: {status}");
        // Bits 12, 38 and 39: NET_ADMIN, PERFMON, BPF.
        let permitted = ["0000000000000000", "000000c000001000"][usize::from(n == 2)];
        assert!(status.contains(&format!("CapPrm:\t{permitted}")), "node {n}: {status}");
    }
    // A caller on one side, an answering machine on the other; the call comes by any of the three.
    let dir = engine.dir.path();
    let scenario = root().join("tests/scenarios/uas-answer.xml").to_string_lossy().into_owned();
    let uas = format!("-sf {scenario} -i {net}.200 -p 5060 -m 3 -nostdin -skip_rlimit");
    let uas: Vec<String> = uas.split(' ').map(str::to_owned).collect();
    let mut uas = Proc::start(&bridge, dir, "uas", Path::new("sipp"), &uas);
    for n in 0..3 {
        let uac = format!(
            "-sn uac {net}.{}:5060 -i {net}.100 -p 5060 -s 4912345 -m 1 -d 500 -nostdin -skip_rlimit -timeout 30s",
            10 + n
        );
        let uac: Vec<String> = uac.split(' ').map(str::to_owned).collect();
        let mut uac = Proc::start(&bridge, dir, "uac", Path::new("sipp"), &uac);
        let ended = uac.wait(Duration::from_secs(40));
        assert!(ended.success(), "the call by node {n} failed: {}", uac.output());
    }
    assert!(uas.wait(Duration::from_secs(20)).success(), "three calls arrived");
    for name in &names {
        let stopped = engine.podman(&["stop", "-t", "20", name]);
        assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
        let out = engine.podman(&["inspect", "-f", "{{.State.ExitCode}}", name]);
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "0", "{name} ended by itself");
    }
}
