//! Phones and browsers at the edge: registered over UDP, TCP and TLS behind a NAT and called there;
//! web phones over secure WebSocket, under node.js and in a browser.
//!
//! ```text
//! home 192.168.7.10 ── nat 10.1.0.2 ┐
//!                  out 10.1.0.10 ───┴── 10.1.0.1 sbc
//! ```

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use sbc_tests::baresip::{Baresip, Phone};
use sbc_tests::net::{Net, ip, nft, run};
use sbc_tests::node::Node;
use sbc_tests::proc::Proc;
use sbc_tests::{can_make_namespaces, wait_for};
use tempfile::TempDir;

const CONFIG: &str = r#"
[node]
name = "test"
drain-time = "2s"

[admin]
socket = "@DIR@/sbc.sock"

[cdr]
file = "@DIR@/cdr.jsonl"

[[interface]]
name = "access"
listen = ["udp://10.1.0.1:5060", "tcp://10.1.0.1:5060", "tls://10.1.0.1:5061", "wss://10.1.0.1:5061", "wss://10.1.0.1:7443"]
media = { ports = "20000-29999" }
tls = { certificates = [{ chain = "../sbc.pem", key = "../sbc.key" }] }
websocket = { origins = ["https://phone.example.com", "http://127.0.0.1:8080"] }

[[trunk]]
name = "phones"
interface = "access"

[registrar]
trunk = "phones"
domains = ["example.com", "10.1.0.1"]

[[user]]
name = "alice"
ha1-md5 = "b1726872c344b6dc8365b774f8fd6412"

[[user]]
name = "bob"
ha1-md5 = "2664cba6663a734ef3a6fefc0c0d0821"

[[route]]
source = "phones"
target = "phones"
"#;

pub(crate) struct Edge {
    pub(crate) net: Net,
    pub(crate) dir: TempDir,
    pub(crate) node: Node,
}

impl Edge {
    fn new(masquerade: &str) -> Edge {
        Edge::with(masquerade, "")
    }

    /// With more in the registrar's section.
    pub(crate) fn with_registrar(masquerade: &str, more: &str) -> Edge {
        let section = "[registrar]\n";
        let config = CONFIG.replace(section, &format!("{section}{more}"));
        Edge::configured(masquerade, &config)
    }

    /// With more at the end of the configuration.
    pub(crate) fn with(masquerade: &str, more: &str) -> Edge {
        Edge::configured(masquerade, &format!("{CONFIG}{more}"))
    }

    fn configured(masquerade: &str, config: &str) -> Edge {
        let net = Net::new(&["home", "nat", "out", "sbc"]);
        net.bridge("sbc", &[("nat", "10.1.0.2/24"), ("out", "10.1.0.10/24")]);
        net.address("sbc", "br0", "10.1.0.1/24");
        net.link("home", "192.168.7.10/24", "nat", "192.168.7.1/24");
        let (home, nat) = (net.ns("home"), net.ns("nat"));
        ip(&format!("-n {home} route add default via 192.168.7.1"));
        run("ip", &format!("netns exec {nat} sysctl -qw net.ipv4.ip_forward=1"));
        nft(
            &nat,
            &format!(
                "table ip nat {{\n chain post {{\n type nat hook postrouting priority 100;\n \
                 oifname \"to-sbc\" {masquerade}\n }}\n }}"
            ),
        );
        let dir = tempfile::tempdir().expect("temporary directory");
        certificate(&dir);
        let node = Node::start(&net.ns("sbc"), dir.path(), "sbc", config);
        Edge { net, dir, node }
    }

    /// A registered phone.
    fn phone(&self, ns: &str, user: &str, transport: &str, phone: &Phone) -> Baresip {
        let port = if transport == "tls" { 5061 } else { 5060 };
        let account = format!(
            "<sip:{user}@10.1.0.1:{port};transport={transport}>;auth_pass=secret;regint=60"
        );
        let ca = self.dir.path().join("sbc.pem");
        let tls = format!("sip_cafile {}\nsip_verify_server yes\n", ca.display());
        let baresip = Baresip::start_as(&self.net.ns(ns), self.dir.path(), phone, &account, &tls);
        baresip.proc.wait_output("200 OK", Duration::from_secs(15));
        baresip
    }
}

/// A certificate for the SBC's address that is its own authority.
fn certificate(dir: &TempDir) {
    let at = dir.path().to_string_lossy();
    run(
        "openssl",
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=sbc \
             -addext subjectAltName=IP:10.1.0.1,DNS:sbc.example.com -keyout {at}/sbc.key \
             -out {at}/sbc.pem"
        ),
    );
}

/// Alice registers from behind the NAT, Bob calls her from the public side; both hear each other.
fn called_behind_nat(test: &str, transport: &'static str, masquerade: &str) {
    if !can_make_namespaces(test) {
        return;
    }
    let edge = Edge::new(masquerade);
    let phone = |user, listen, tone_hz, dial, quit_after_s| Phone {
        user,
        listen,
        transport,
        tone_hz,
        params: "",
        dial,
        quit_after_s,
    };
    let mut alice = edge.phone(
        "home",
        "alice",
        transport,
        &phone("alice", "192.168.7.10:5062", 1000, None, 16),
    );
    let port = if transport == "tls" { 5061 } else { 5060 };
    let dial = format!("sip:alice@10.1.0.1:{port};transport={transport}");
    let mut bob =
        edge.phone("out", "bob", transport, &phone("bob", "10.1.0.10:5062", 440, Some(&dial), 8));
    bob.proc.wait(Duration::from_secs(40));
    let cdrs = edge.node.wait_cdrs(1);
    assert_eq!(cdrs[0]["status"], 200, "{}", cdrs[0]);
    alice.proc.wait(Duration::from_secs(40));
    bob.assert_heard(1000.0, 2.0);
    alice.assert_heard(440.0, 2.0);
    edge.node.stop();
}

#[test]
fn a_phone_behind_nat_is_called_over_udp() {
    called_behind_nat("nat udp", "udp", "masquerade");
}

#[test]
fn a_phone_behind_a_symmetric_nat_is_called_over_udp() {
    called_behind_nat("nat udp symmetric", "udp", "masquerade fully-random");
}

#[test]
fn a_phone_behind_a_symmetric_nat_is_called_over_tcp() {
    called_behind_nat("nat tcp", "tcp", "masquerade fully-random");
}

#[test]
fn a_phone_behind_nat_is_called_over_tls() {
    called_behind_nat("nat tls", "tls", "masquerade");
}

/// What a user types into linphonec, which then goes on for as long as the test does.
fn linphone(edge: &Edge) -> Proc {
    let dir = edge.dir.path().join("linphone");
    // It makes its database there and nothing above it.
    std::fs::create_dir_all(dir.join(".local/share/linphone")).expect("directory");
    let at = dir.to_string_lossy().into_owned();
    run("sox", &format!("-n -r 8000 -c 1 -b 16 {at}/in.wav synth 60 sine 1000"));
    let config = "[sip]\nsip_port=5062\nsip_tcp_port=0\nsip_tls_port=0\nuse_ipv6=0\ndefault_proxy=0\n\
                  [auth_info_0]\nusername=alice\npasswd=secret\nrealm=example.com\n\
                  [proxy_0]\nreg_proxy=<sip:10.1.0.1:5060>\nreg_identity=sip:alice@10.1.0.1\n\
                  reg_expires=60\nreg_sendregister=1\n";
    std::fs::write(dir.join("rc"), config).expect("configuration");
    let typed = format!("soundcard use files\\nplay {at}/in.wav\\nrecord {at}/heard.wav\\n");
    let line = format!(
        "exec linphonec -c {at}/rc -a < <(printf '{typed}'; exec setpriv --pdeathsig KILL sleep 1000)"
    );
    let args = [format!("HOME={at}"), "bash".to_owned(), "-c".to_owned(), line];
    let ns = edge.net.ns("home");
    Proc::start(&ns, edge.dir.path(), "linphonec", std::path::Path::new("/usr/bin/env"), &args)
}

#[test]
fn linphone_registers_behind_nat_and_is_called() {
    if !can_make_namespaces("linphone") {
        return;
    }
    let edge = Edge::new("masquerade");
    let alice = linphone(&edge);
    let contact = wait_for("linphone to register", Duration::from_secs(30), || {
        let online = edge.node.ctl("registrations list");
        (online["total"] == 1).then(|| online["registrations"][0]["contacts"][0].clone())
    });
    assert_eq!((&contact["transport"], &contact["natted"]), (&"udp".into(), &true.into()));
    let phone = Phone {
        user: "bob",
        listen: "10.1.0.10:5062",
        transport: "udp",
        tone_hz: 440,
        params: "",
        dial: Some("sip:alice@10.1.0.1:5060"),
        quit_after_s: 8,
    };
    let mut bob = edge.phone("out", "bob", "udp", &phone);
    bob.proc.wait(Duration::from_secs(40));
    let cdrs = edge.node.wait_cdrs(1);
    assert_eq!(cdrs[0]["status"], 200, "{}", cdrs[0]);
    bob.assert_heard(1000.0, 2.0);
    drop(alice);
    edge.node.stop();
}

/// JsSIP with its modules, installed once by the lock file; `None` where there is no node.js.
fn jssip() -> Option<std::path::PathBuf> {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !has("node") || !has("npm") {
        sbc_tests::skip_tool("web phones", "no node.js and npm here");
        return None;
    }
    let source = sbc_tests::root().join("tests/jssip");
    let place = sbc_tests::root().join("target/jssip");
    std::fs::create_dir_all(&place).expect("directory for JsSIP");
    for file in ["package.json", "package-lock.json", "phone.js", "browser.js"] {
        std::fs::copy(source.join(file), place.join(file)).expect("copy JsSIP's files");
    }
    if !place.join("node_modules/jssip").exists() {
        let installed = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&place)
            .status();
        assert!(installed.is_ok_and(|s| s.success()), "npm cannot install JsSIP");
    }
    Some(place)
}

#[test]
fn web_phones_register_and_send_messages_over_secure_websocket() {
    if !can_make_namespaces("web phones") {
        return;
    }
    let Some(place) = jssip() else { return };
    let phone = place.join("phone.js");
    let edge = Edge::new("masquerade");
    let start = |ns: &str, user: &str, peer: &str| {
        let mut args =
            vec!["PHONE_CA=".to_owned() + &edge.dir.path().join("sbc.pem").to_string_lossy()];
        let words =
            ["node", &phone.to_string_lossy(), "wss://10.1.0.1:5061/", user, "secret", peer];
        args.extend(words.iter().filter(|w| !w.is_empty()).map(|w| (*w).to_owned()));
        let ns = edge.net.ns(ns);
        Proc::start(&ns, edge.dir.path(), user, std::path::Path::new("/usr/bin/env"), &args)
    };
    let limit = Duration::from_secs(15);
    let mut alice = start("home", "alice", "");
    alice.wait_output("registered", limit);
    let mut bob = start("out", "bob", "alice");
    bob.wait_output("message sent", limit);
    alice.wait_output("message: hello over WSS", limit);
    let online = edge.node.ctl("registrations list");
    assert_eq!(online["total"], 2, "{online}");
    let contact = &online["registrations"][0]["contacts"][0];
    assert_eq!((&contact["transport"], &contact["connected"]), (&"wss".into(), &true.into()));
    // A web phone names a host that does not exist: it is reached by its connection alone.
    assert_eq!(contact["natted"], true, "{contact}");
    edge.node.ctl("registrations remove bob@example.com");
    assert!(edge.node.try_ctl("registrations show bob@example.com").is_none());
    assert_eq!(edge.node.ctl("registrations list")["total"], 1);
    alice.signal(Signal::SIGTERM);
    alice.wait_output("unregistered", limit);
    alice.wait(limit);
    bob.signal(Signal::SIGTERM);
    bob.wait(limit);
    edge.node.stop();
}

/// SHA-256 of a certificate's public key in Base64, as Chromium takes it for one to trust.
fn key_print(certificate: &std::path::Path) -> String {
    let pipe = format!(
        "openssl x509 -in {} -pubkey -noout | openssl pkey -pubin -outform der | \
         openssl dgst -sha256 -binary | openssl base64 -A",
        certificate.display()
    );
    let out = Command::new("sh").args(["-c", &pipe]).output().expect("openssl");
    let print = String::from_utf8(out.stdout).expect("Base64");
    assert_eq!(print.len(), 44, "{print} {}", String::from_utf8_lossy(&out.stderr));
    print
}

#[test]
fn browsers_register_and_send_messages_over_secure_websocket() {
    if !can_make_namespaces("browsers") {
        return;
    }
    if Command::new("chromium").arg("--version").output().is_err() {
        return sbc_tests::skip_tool("browsers", "no chromium here");
    }
    let Some(place) = jssip() else { return };
    let edge = Edge::new("masquerade");
    let key = key_print(&edge.dir.path().join("sbc.pem"));
    let script = place.join("browser.js").to_string_lossy().into_owned();
    let start = |ns: &str, port: u16, words: &[&str]| {
        let mut args = vec![format!("PHONE_SPKI={key}"), format!("PHONE_PORT={port}")];
        // Browsers refuse the ports 5060 and 5061 (fetch.spec.whatwg.org, "bad port").
        args.extend(["node", &script, "wss://10.1.0.1:7443/"].map(str::to_owned));
        args.extend(words.iter().map(|w| (*w).to_owned()));
        let (ns, name) = (edge.net.ns(ns), format!("{}-{port}", words[0]));
        Proc::start(&ns, edge.dir.path(), &name, std::path::Path::new("/usr/bin/env"), &args)
    };
    let limit = Duration::from_secs(60);
    // One is behind the NAT, the other is not; both hear of each other by MESSAGE.
    let mut alice = start("home", 8080, &["alice", "secret"]);
    alice.wait_output("Chrome/", limit);
    alice.wait_output("registered", limit);
    let mut bob = start("out", 8080, &["bob", "secret", "alice", "grüße over WSS"]);
    bob.wait_output("message sent", limit);
    alice.wait_output("message from bob: grüße over WSS", limit);
    let online = edge.node.ctl("registrations list");
    assert_eq!(online["total"], 2, "{online}");
    let contact = &online["registrations"][0]["contacts"][0];
    assert_eq!((&contact["transport"], &contact["connected"]), (&"wss".into(), &true.into()));
    // What fails is told to the page: a user who is gone, a wrong password.
    edge.node.ctl("registrations remove alice@example.com");
    bob.signal(Signal::SIGTERM);
    bob.wait_output("unregistered", limit);
    bob.wait(limit);
    let mut lost = start("out", 8080, &["bob", "secret", "alice", "anybody"]);
    lost.wait_output("message failed Unavailable", limit);
    lost.signal(Signal::SIGTERM);
    lost.wait(limit);
    let mut wrong = start("out", 8080, &["bob", "guessed"]);
    wrong.wait_output("registration failed Authentication Error", limit);
    wrong.signal(Signal::SIGTERM);
    wrong.wait(limit);
    // A page of an origin that is not listed gets no WebSocket at all.
    let mut foreign = start("out", 8081, &["bob", "secret"]);
    foreign.wait_output("disconnected", limit);
    assert!(!foreign.output().contains("registered"), "{}", foreign.output());
    foreign.signal(Signal::SIGTERM);
    foreign.wait(limit);
    alice.signal(Signal::SIGTERM);
    alice.wait(limit);
    edge.node.stop();
}
