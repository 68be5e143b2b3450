//! The package where it is meant to be: installed by apt into a Debian of its own whose first process is
//! systemd, started, watched, upgraded, removed and purged there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use sbc_tests::{binary, can_make_namespaces, root, skip_tool, wait_for};

use super::image::Engine;
use super::{have, run, tools};

const LONG: Duration = Duration::from_secs(90);
const CONFIG: &str = r#"
[[interface]]
name = "a"
listen = ["udp://127.0.0.1:5060"]
media = { ports = "20000-20099" }
[[interface]]
name = "b"
listen = ["udp://127.0.0.1:5070"]
media = { ports = "21000-21099" }
[media]
allow-local = true
[[trunk]]
name = "caller"
interface = "a"
sources = "127.0.0.0/8"
[[trunk]]
name = "callee"
interface = "b"
peers = "127.0.0.3:5060"
[[route]]
source = "caller"
target = "callee"
[cdr]
file = "/var/lib/sbc/cdr.jsonl"
"#;

/// A Debian with what the package depends on and nothing else; made once and kept beside the other
/// tools. `None` where no mirror can be reached.
fn debian(package: &Path) -> Option<PathBuf> {
    let depends = run(Command::new("dpkg-deb").arg("-f").arg(package).arg("Depends"));
    let names = depends.split(", ").filter_map(|d| d.split([' ', '|', '\n']).next());
    let include = format!("apt,systemd-sysv,{}", names.collect::<Vec<_>>().join(","));
    let place = tools().join("debian");
    let made_of = place.join("made-of");
    if std::fs::read_to_string(&made_of).is_ok_and(|text| text == include) {
        return Some(place);
    }
    drop(std::fs::remove_dir_all(&place));
    let made = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=essential", &format!("--include={include}"), "bookworm"])
        .arg(&place)
        .output();
    let made = made.expect("mmdebstrap");
    if !made.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&made.stderr));
        return None;
    }
    std::fs::write(made_of, include).expect("write");
    Some(place)
}

/// The package again under the next version.
fn newer(package: &Path, dir: &Path) -> PathBuf {
    let tree = dir.join("newer");
    run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).expect("control");
    let text = text.replace("\nVersion: ", "\nVersion: 1:");
    std::fs::write(control, text).expect("write");
    let out = dir.join("newer.deb");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(&out));
    out
}

struct Machine<'a> {
    engine: &'a Engine,
    name: String,
}

impl Machine<'_> {
    fn try_run(&self, words: &str) -> Output {
        let mut all = vec!["exec", self.name.as_str()];
        all.extend(words.split(' '));
        self.engine.podman(&all)
    }

    /// Runs a command that must succeed; what it printed.
    fn run(&self, words: &str) -> String {
        let out = self.try_run(words);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let journal = || {
            let of = self.try_run("journalctl -b --no-pager -n 60");
            String::from_utf8_lossy(&of.stdout).into_owned()
        };
        assert!(out.status.success(), "{words}: {stdout}\n{stderr}\n{}", journal());
        stdout.trim().to_owned()
    }

    fn show(&self, property: &str) -> String {
        self.run(&format!("systemctl show sbc --value -p {property}"))
    }

    fn active(&self) -> bool {
        self.show("ActiveState") == "active"
    }

    fn journal(&self) -> String {
        self.run("journalctl -u sbc -b --no-pager -o cat")
    }

    /// It came back by itself after its process `former` was gone.
    fn restarted(&self, former: &str) {
        wait_for("the node to be started again", LONG, || {
            let pid = self.show("MainPID");
            (self.active() && pid != former && pid != "0").then_some(())
        });
    }
}

#[test]
fn the_package_lives_under_systemd_from_installation_to_purge() {
    if !can_make_namespaces("package under systemd") {
        return;
    }
    for program in ["podman", "runc", "dpkg-shlibdeps", "mmdebstrap"] {
        if !have(program) {
            return skip_tool("package under systemd", &format!("no {program} here"));
        }
    }
    let mut engine = Engine::new();
    let bin = binary("sbc-node").parent().expect("folder").to_path_buf();
    let mut build = Command::new(root().join("deploy/debian/build.sh"));
    build.arg(bin).arg(engine.path()).env("SBC_DEB_COMPRESSION", "none");
    let package = PathBuf::from(run(&mut build).trim());
    let Some(debian) = debian(&package) else {
        return skip_tool("package under systemd", "no Debian mirror can be reached");
    };
    // Its own copy: installing writes to it.
    let disk = engine.path().join("disk");
    run(Command::new("cp").arg("-a").arg(&debian).arg(&disk));
    run(Command::new("cp").arg(&package).arg(disk.join("root/sbc.deb")));
    run(Command::new("cp").arg(newer(&package, engine.path())).arg(disk.join("root/newer.deb")));

    let name = format!("{}-systemd", engine.name());
    let words = ["run", "-d", "--name", &name, "--systemd=always", "--privileged"];
    let disk_text = disk.to_string_lossy().into_owned();
    let rest = ["--network", "none", "--rootfs", &disk_text, "/lib/systemd/systemd"];
    let started = engine.podman(&[&words[..], &rest[..]].concat());
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    engine.started(name.clone());
    let machine = Machine { engine: &engine, name };
    let up = || machine.try_run("systemctl is-system-running").stdout;
    wait_for("systemd", LONG, || up().starts_with(b"running").then_some(()));

    installed(&machine, &disk);
    started_and_ready(&machine);
    watched_over(&machine);
    refused_without_a_loop(&machine, &disk);
    upgraded(&machine);
    removed(&machine, &disk);
}

fn installed(machine: &Machine<'_>, disk: &Path) {
    machine.run("apt-get install -y -q /root/sbc.deb");
    assert!(!machine.active(), "it waits for its configuration");
    assert_eq!(machine.run("stat -c %a,%U,%G /etc/sbc/sbc.toml"), "640,root,sbc");
    machine.run("sbc-node check /etc/sbc/sbc.toml");
    std::fs::write(disk.join("etc/sbc/sbc.toml"), CONFIG).expect("write");
    // The test has no twenty seconds for a watchdog.
    let more = disk.join("etc/systemd/system/sbc.service.d");
    std::fs::create_dir_all(&more).expect("folder");
    std::fs::write(more.join("test.conf"), "[Service]\nWatchdogSec=2s\n").expect("write");
    machine.run("systemctl daemon-reload");
}

/// `start` returns when the node said that it takes calls, as the unit's user and with no more
/// capabilities than it names.
fn started_and_ready(machine: &Machine<'_>) {
    machine.run("systemctl start sbc");
    assert!(machine.active());
    assert!(machine.run("sbcctl --output json status").contains("\"running\""));
    let answered = machine.run("sbcctl call --via 127.0.0.1:5060 --any-answer sip:1@127.0.0.1");
    assert!(answered.starts_with("INVITE sip:1@127.0.0.1: "), "{answered}");
    let pid = machine.show("MainPID");
    assert_eq!(machine.run(&format!("stat -c %U /proc/{pid}")), "sbc");
    let status = machine.run(&format!("cat /proc/{pid}/status"));
    // NET_ADMIN, NET_BIND_SERVICE, PERFMON, BPF.
    assert!(status.contains("CapBnd:\t000000c000001400"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    machine.run("systemctl reload sbc");
    assert_eq!(machine.show("MainPID"), pid, "a reload is no restart");
}

/// One that dies and one that stands still are started again.
fn watched_over(machine: &Machine<'_>) {
    let pid = machine.show("MainPID");
    machine.run("systemctl kill -s KILL sbc");
    machine.restarted(&pid);
    let pid = machine.show("MainPID");
    machine.run("systemctl kill -s STOP sbc");
    machine.restarted(&pid);
    assert!(machine.journal().contains("Watchdog timeout"), "{}", machine.journal());
    assert_eq!(machine.show("NRestarts"), "2");
}

/// A bad configuration is told with its line, and nobody tries again and again.
fn refused_without_a_loop(machine: &Machine<'_>, disk: &Path) {
    let config = disk.join("etc/sbc/sbc.toml");
    std::fs::write(&config, format!("[node]\nnonsense = 1\n{CONFIG}")).expect("write");
    let refused = machine.try_run("systemctl restart sbc");
    assert!(!refused.status.success());
    assert_eq!(machine.show("ActiveState"), "failed");
    assert!(
        machine.journal().contains("/etc/sbc/sbc.toml:2: unknown key \"nonsense\""),
        "{}",
        machine.journal()
    );
    std::fs::write(&config, CONFIG).expect("write");
    machine.run("systemctl reset-failed sbc");
    machine.run("systemctl start sbc");
}

fn upgraded(machine: &Machine<'_>) {
    let pid = machine.show("MainPID");
    machine.run("apt-get install -y -q /root/newer.deb");
    assert!(machine.run("dpkg-query -W -f ${Version} sbc").starts_with("1:"));
    assert!(machine.active(), "a running node runs again");
    assert_ne!(machine.show("MainPID"), pid, "by the new program");
    assert!(machine.run("cat /etc/sbc/sbc.toml").contains("127.0.0.3"), "one's own stays");
}

fn removed(machine: &Machine<'_>, disk: &Path) {
    machine.run("systemctl stop sbc");
    assert_eq!(machine.show("ActiveState"), "inactive");
    assert_eq!(machine.show("Result"), "success");
    machine.run("systemctl enable --now sbc");
    machine.run("apt-get remove -y -q sbc");
    assert!(!machine.try_run("pidof sbc-node").status.success(), "removed while it ran");
    assert!(disk.join("etc/sbc/sbc.toml").exists(), "the configuration outlives the package");
    assert!(disk.join("var/lib/sbc").exists(), "and so does its state");
    machine.run("apt-get purge -y -q sbc");
    for gone in ["etc/sbc/sbc.toml", "var/lib/sbc", "lib/systemd/system/sbc.service"] {
        assert!(!disk.join(gone).exists(), "{gone} outlives a purge");
    }
}
