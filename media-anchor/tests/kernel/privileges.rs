//! With how little the ways work: the network namespace of a pod, an ordinary user with one
//! capability, a user namespace that anybody can make.
//!
//! Each test runs this very program again with less; `child` is what it runs there.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use media_anchor::Side;
use media_anchor::kernel::{KernelConfig, Way, open};
use media_anchor::plan_types::{Flow, FlowChange, FlowOutcome};

use crate::call::{Call, addr, apply, flow, waits};
use crate::netns::{Net, available};

const CHILD: &str = "SBC_KERNEL_CHILD";
const SESSION: u64 = 31;

/// The flows of `Call::v4(net, SESSION)`, for who can't have its sockets.
fn flows() -> [Flow; 2] {
    let ends = ["10.1.0.2:5031", "10.1.0.1:40031", "10.2.0.1:41031", "10.2.0.2:6031"];
    let [a, sa, sb, b] = ends.map(addr);
    [flow(SESSION, Side::A, (a, sa), (sb, b)), flow(SESSION, Side::B, (b, sb), (sa, a))]
}

/// Not a test of its own: relays one call until its input ends.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let opened = open(&KernelConfig { way: Way::Auto, ..KernelConfig::default() });
    let status = opened.report.status();
    println!("WAY {} {}", status.way, status.reason);
    let mut offload = opened.offload.expect("a kernel way");
    let outcomes = apply(offload.as_mut(), &flows().map(FlowChange::Install));
    assert_eq!(outcomes, flows().map(|f| FlowOutcome::Installed(f.id)));
    println!("READY");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("input");
}

/// This program where everybody may run it, and the words that run it as an ordinary user.
fn as_nobody(dir: &tempfile::TempDir) -> (String, Vec<String>) {
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    };
    open(dir.path());
    let copy = dir.path().join("kernel");
    std::fs::copy(std::env::current_exe().expect("this program"), &copy).expect("copy");
    open(&copy);
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    (copy.to_string_lossy().into_owned(), words.map(str::to_owned).into())
}

/// CAP_NET_ADMIN, as a pod's `securityContext` or a unit's `AmbientCapabilities` gives it, and no
/// root: nftables relays. CAP_BPF is missing, which the reason says.
#[test]
fn an_ordinary_user_with_cap_net_admin_relays_by_nftables() {
    if !available("an_ordinary_user_with_cap_net_admin") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let net = Net::new();
    let call = Call::v4(&net, SESSION);
    assert_eq!(call.flows(), flows());
    let dir = tempfile::tempdir().expect("directory");
    let (program, mut words) = as_nobody(&dir);
    let caps = ["--bounding-set", "--inh-caps", "--ambient-caps"];
    words.extend(caps.iter().flat_map(|c| [(*c).to_owned(), "-all,+net_admin".to_owned()]));
    relays_by_nftables(&net, &call, &program, words);
}

/// File capabilities, as `setcap` or a package gives them: nobody, with nothing inherited.
#[test]
fn an_ordinary_user_relays_with_file_capabilities() {
    let test = "an_ordinary_user_relays_with_file_capabilities";
    if !available(test) || !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let (program, words) = as_nobody(&dir);
    let set = Command::new("setcap").args(["cap_net_admin+ep", &program]).output();
    match set {
        Ok(out) if out.status.success() => {}
        Ok(out) => {
            println!("SKIPPED {test}: {}", String::from_utf8_lossy(&out.stderr));
            return;
        }
        Err(error) => {
            println!("SKIPPED {test}: setcap: {error}");
            return;
        }
    }
    let net = Net::new();
    let call = Call::v4(&net, SESSION);
    relays_by_nftables(&net, &call, &program, words);
}

/// Runs `child` of the program by those words in the SBC's namespace, and a call through it.
fn relays_by_nftables(net: &Net, call: &Call, program: &str, words: Vec<String>) {
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", net.sbc.path()))
        .args(words)
        .args([program, "--exact", "privileges::child", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux is installed");
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        said.push_str(&line.expect("text"));
        said.push('\n');
        if said.contains("READY") {
            break;
        }
    }
    assert!(said.contains("READY"), "the child ended:\n{said}");
    assert!(said.contains("WAY nftables ebpf does not work here: not permitted"), "{said}");
    assert_eq!(call.a_to_b(b"as nobody").0, b"as nobody");
    assert_eq!(call.b_to_a(b"and back").0, b"and back");
    assert!(!waits(&call.sa) && !waits(&call.sb), "userspace saw none of it");
    drop(child.stdin.take());
    child.wait().expect("the child ends");
    assert!(!net.sbc.cmd("nft", &["list", "tables"]).contains("sbc_media"), "nothing stays");
}

/// No capability at all outside: a user namespace of its own is enough for nftables.
#[test]
fn an_unprivileged_user_namespace_relays_by_nftables() {
    if !available("an_unprivileged_user_namespace") || !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let (program, words) = as_nobody(&dir);
    let run = |args: &[&str]| {
        Command::new(&words[0])
            .args(&words[1..])
            .args(["unshare", "-Urn"])
            .args(args)
            .env("TMPDIR", dir.path())
            .output()
            .expect("util-linux is installed")
    };
    let can = run(&["true"]);
    if !can.status.success() {
        let why = String::from_utf8_lossy(&can.stderr).into_owned();
        assert!(std::env::var_os("CI").is_none(), "user namespaces are needed in CI: {why}");
        println!("SKIPPED an_unprivileged_user_namespace: {why}");
        return;
    }
    let test = "rewrite::nft::both_directions_are_rewritten";
    let out = run(&[&program, "--exact", test, "--nocapture"]);
    let said = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("1 passed") && !said.contains("SKIPPED"), "{said}\n{errors}");
}
