//! Whole files: the common case, everything wrong at once, differences.

use sbc_core::net::Host;
use sbc_core::routing::{RouteTarget, Strategy};

use super::*;

const MINIMAL: &str = r#"
[[interface]]
name = "inside"
listen = "udp://10.0.0.10:5060"
media = { ports = "20000-29999" }

[[interface]]
name = "outside"
listen = ["udp://192.0.2.10", "tcp://192.0.2.10"]
advertise = "203.0.113.5"
media = { ports = "30000-39999" }

[[trunk]]
name = "pbx"
interface = "inside"
peers = "10.0.0.20"

[[trunk]]
name = "carrier"
interface = "outside"
peers = "sip.carrier.example"

[[route]]
source = "pbx"
target = "carrier"

[[route]]
source = "carrier"
target = "pbx"
"#;

fn check_with(text: &str, base: &Path) -> Result<Config, Vec<Problem>> {
    let env = |name: &str| (name == "POD_IP").then(|| "10.1.2.3".to_owned());
    check_in(text, &Surroundings { base, env: &env, hostname: "node-7", cores: 4, interfaces: &[] })
}

fn good(text: &str) -> Config {
    match check_with(text, Path::new("/etc/sbc")) {
        Ok(config) => config,
        Err(problems) => panic!("{problems:#?}"),
    }
}

fn told(text: &str) -> Vec<String> {
    match check_with(text, Path::new("/etc/sbc")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_common_case_fits_a_screen_and_gets_the_defaults() {
    assert!(MINIMAL.lines().count() <= 40);
    let c = good(MINIMAL);
    assert_eq!((&*c.node.name, c.node.shards), ("node-7", 4));
    let outside = &c.interfaces[1];
    assert_eq!((&*outside.name, &*outside.realm, outside.media), ("outside", "outside", true));
    assert_eq!(outside.listeners.len(), 2);
    assert_eq!(outside.listeners[1].local.to_string(), "192.0.2.10:5060");
    assert_eq!(outside.listeners[1].advertise_host, Host::Ip("203.0.113.5".parse().unwrap()));
    assert_eq!(outside.listeners[1].advertise_port, 5060);
    let media = c.media.interfaces[1].v4.unwrap();
    assert_eq!(
        (media.local.to_string(), media.advertise.to_string()),
        ("192.0.2.10".into(), "203.0.113.5".into())
    );
    assert_eq!(c.media.interfaces[0].ports, 20000..=29999);
    assert_eq!(c.routing.trunks[1].interface.0, 1);
    assert_eq!(c.admin.socket, Path::new("/run/sbc/admin.sock"));
    assert!(c.cdr.is_none() && c.cluster.is_none() && c.metrics.is_none());
    assert_eq!(c.calls.commit_wait, None);
    let core = c.core(None, &Keys::drawn(), Instant::now()).unwrap();
    assert!(core.routing.trunk_by_name("carrier").is_some());
}

#[test]
fn interface_ids_do_not_depend_on_the_order_of_the_file() {
    let (head, tail) = MINIMAL.split_at(MINIMAL.find("[[trunk]]").unwrap());
    let (a, b) = head.split_at(head.rfind("[[interface]]").unwrap());
    let swapped = good(&format!("{b}{a}{tail}"));
    assert_eq!(swapped.interfaces, good(MINIMAL).interfaces);
}

#[test]
fn addresses_come_from_the_environment_strictly() {
    let text = MINIMAL
        .replace("203.0.113.5", "${POD_IP}:5070")
        .replace("[\"udp://192.0.2.10\", \"tcp://192.0.2.10\"]", "\"udp://192.0.2.10\"");
    let listener = &good(&text).interfaces[1].listeners[0];
    assert_eq!(listener.advertise_host, Host::Ip("10.1.2.3".parse().unwrap()));
    assert_eq!(listener.advertise_port, 5070);
    let text = MINIMAL.replace("203.0.113.5", "${NODE_IP}");
    assert_eq!(told(&text), ["line 10: the environment variable NODE_IP is not set"]);
}

#[test]
fn groups_weights_and_prefix_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("lcr.csv"), "+49,both\n+4930,pbx,3\n").unwrap();
    let text = format!(
        "{}\n[[group]]\nname = \"both\"\ntrunks = [\"carrier\", \"pbx\"]\nweights = [3, 1]\nmax-cps = 2.5\n[[route]]\nname = \"lcr\"\nprefixes = \"lcr.csv\"\n",
        MINIMAL
    );
    let c = check_with(&text, dir.path()).unwrap();
    let group = &c.routing.groups[0];
    assert_eq!((group.strategy, group.members[0].weight), (Strategy::Weighted, 3));
    assert_eq!(group.limits.max_cps, Some(2.5));
    let RouteTarget::Table(table) = &c.routing.routes[2].target else { panic!("no table") };
    assert_eq!(table.len(), 2);

    std::fs::write(dir.path().join("lcr.csv"), "+49,nobody\n").unwrap();
    let problems = check_with(&text, dir.path()).unwrap_err();
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "line 32: no route leads to group \"both\"",
            "line 38: the prefix table names \"nobody\", which is no group or trunk",
        ]
    );
    std::fs::write(dir.path().join("lcr.csv"), "x,both\n+1,both\n+1,pbx\n").unwrap();
    let problems = check_with(&text, dir.path()).unwrap_err();
    assert!(
        problems.iter().any(|p| p.message == "lcr.csv: line 3: the prefix was given before"),
        "{problems:?}"
    );
}

#[test]
fn what_is_wrong_is_told_all_together_with_its_line() {
    let text = r#"
[node]
shards = 0
colour = "red"
[[interface]]
name = "inside"
listen = ["udp://10.0.0.10:5060", "udp://0.0.0.0:5061"]
media = { ports = "5000-5999" }
[[interface]]
name = "out side"
listen = ["tls://192.0.2.10", "udp://192.0.2.10:70000"]
[[trunk]]
name = "pbx"
interface = "inside"
peers = ["10.0.0.20:x", "2001:db8::1"]
sources = ["10.0.0.1/8"]
max-cps = -1.0
latch = "maybe"
[[trunk]]
name = "carrier"
interface = "inside"
peers = "192.0.2.1"
translate-in = [{ match = "^0(", replace = "x" }, { match = "^0(.*)$", replace = "$1a" }]
headers = { accept = ["X-*", "Via", "C*"] }
failover = { codes = [200] }
"#;
    let want = [
        "line 3: 0 is not in 1 to 64",
        "line 4: unknown key \"colour\"; known here: name, shards, drain-time, user-agent",
        "line 8: media ports 5000-5999 of interface \"inside\" overlaps listener udp://10.0.0.10:5060 of interface \"inside\"",
        "line 10: the name \"out side\" is not 1 to 64 letters, digits, \"-\", \"_\" or \".\"",
        "line 11: \"udp://192.0.2.10:70000\" is not a listener such as \"udp://192.0.2.1:5060\"",
        "line 15: \"10.0.0.20:x\" is not a peer such as \"192.0.2.7\", \"sip.example.net:5060\" or \"tcp://192.0.2.7\"",
        "line 16: \"10.0.0.1/8\": host bits are set: write 10.0.0.0/8",
        "line 17: max-cps is not a rate of calls per second",
        "line 18: unknown variant \"maybe\", expected one of \"off\", \"auto\", \"force\"",
        "line 23: bad regular expression \"^0(\": unclosed group",
        "line 23: the pattern has no capture \"1a\"; write ${1} before letters and digits",
        "line 24: \"C*\" names a header that the SBC writes itself",
        "line 24: \"Via\" names a header that the SBC writes itself",
        "line 25: 200 is no failure status",
    ];
    assert_eq!(told(text), want);
}

#[test]
fn references_and_reachability() {
    let text = MINIMAL.replace("interface = \"outside\"", "interface = \"nowhere\"")
        + r#"
[[trunk]]
name = "pbx"
interface = "inside"
sources = ["10.0.0.20", "10.9.0.0/16"]
[[trunk]]
name = "six"
interface = "inside"
peers = ["2001:db8::1", "tcp://10.0.0.5"]
probe = { interval = "1s", timeout = "2s" }
credentials = [{ realm = "r", username = "u" }]
[[group]]
name = "lost"
trunks = ["ghost"]
[[route]]
name = "all"
target = "pbx"
[[route]]
name = "never"
reject = 200
target = "nowhere"
"#;
    let want = [
        "line 20: there is no interface \"nowhere\"",
        "line 32: the name \"pbx\" is taken; trunks and groups share one space of names",
        "line 36: probe.timeout is 0 or longer than probe.interval",
        "line 38: interface \"inside\" has no tcp listener over IPv4 to reach \"10.0.0.5\" by",
        "line 38: interface \"inside\" has no udp listener over IPv6 to reach \"2001:db8::1\" by",
        "line 40: credentials need password or password-file",
        "line 42: no route leads to group \"lost\"",
        "line 43: there is no trunk \"ghost\"",
        "line 47: a route needs exactly one of target, prefixes and reject",
        "line 47: the route is never reached: \"all\" before it takes all",
        "line 50: there is no group or trunk \"nowhere\"",
    ];
    assert_eq!(told(&text), want);
}

#[test]
fn a_cluster_of_one_needs_a_directory_only() {
    let c = good(&format!("{MINIMAL}\n[cluster]\ndata = \"raft\"\n"));
    assert_eq!(c.calls.commit_wait, Some(Duration::from_millis(500)));
    let cluster = c.cluster.unwrap();
    assert_eq!(cluster.data, Path::new("/etc/sbc/raft"));
    assert!(cluster.listen.is_none() && cluster.join.is_none() && cluster.addresses.is_empty());
}

#[test]
fn a_cluster_needs_sane_times_and_addresses() {
    let text = format!(
        "{MINIMAL}\n[cluster]\ndata = \"raft\"\nlisten = \"0.0.0.0:7000\"\nlease = \"200ms\"\n\
         handover = \"100ms\"\nfailover = \"address\"\njoin = {{ token = \"x\" }}\n"
    );
    assert_eq!(
        told(&text),
        [
            "line 33: the node listens on all addresses: say in advertise where the others reach it",
            "line 34: the lease is shorter than three heartbeats",
            "line 35: failover = \"address\" needs a handover delay of 1.28 s or more",
            "line 35: the handover delay is not longer than the lease",
            "line 36: failover = \"address\" and [[cluster.address]] go together",
            "line 37: joining needs exactly one of seeds, dns and etcd",
        ]
    );
    let text = format!(
        "{MINIMAL}\n[cluster]\ndata = \"raft\"\nlisten = \"10.0.0.10:7000\"\nfailover = \"address\"\n\
         [cluster.join]\ntoken-file = \"token\"\nseeds = [\"10.0.0.11\", \"sbc-2:7001\"]\n\
         [[cluster.address]]\naddress = \"10.0.0.100\"\ndevice = \"eth0\"\n"
    );
    let cluster = good(&text).cluster.unwrap();
    let sbc_cluster::Discovery::Static(seeds) = cluster.join.unwrap().seeds else { panic!() };
    assert_eq!(seeds, ["10.0.0.11:7000", "sbc-2:7001"]);
    assert_eq!(cluster.addresses[0].group, 1);
    // Who looks for members in etcd registers there; the first node, which joins nobody, when told to.
    let etcd = "{ endpoints = [\"http://10.0.0.5:2379\"], prefix = \"/sbc/\" }";
    let base = format!("{MINIMAL}\n[cluster]\ndata = \"raft\"\nlisten = \"10.0.0.10:7000\"\n");
    let first = format!("{base}register = {etcd}\n");
    let joins = format!("{base}[cluster.join]\ntoken-file = \"token\"\netcd = {etcd}\n");
    for text in [first, joins] {
        let registers = good(&text).cluster.unwrap().register;
        let Some(sbc_cluster::Discovery::Etcd { prefix, .. }) = registers else { panic!() };
        assert_eq!(prefix, "/sbc/");
    }
}

#[test]
fn the_guard_trusts_trunks_that_are_narrow_and_reads_its_lists() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("own.txt"), "user-agent ^evil\n").unwrap();
    let text = format!(
        "{MINIMAL}{}",
        r#"
[[trunk]]
name = "anyone"
interface = "outside"
sources = ["0.0.0.0/0", "198.51.100.0/24"]
[guard]
mode = "requests"
trusted = ["172.16.0.0/12"]
scanner-file = "own.txt"
ban-for = "off"
[[guard.access]]
interface = "outside"
sources = "198.51.100.0/24"
methods = ["INVITE", "REGISTER"]
access = "allow"
[[guard.access]]
interface = "outside"
access = "drop"
[[guard.limit]]
by = "prefix"
prefix-length = 4
methods = "INVITE"
per-second = 2.5
[[guard.fraud]]
name = "night"
hours = [22, 6]
concurrent = [5, 10]
"#
    );
    let c = check_with(&text, dir.path()).unwrap();
    let trusted: Vec<String> = c.guard.trusted.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.20", "172.16.0.0/12", "198.51.100.0/24"]);
    let evil = sbc_core::guard::Fingerprint { user_agent: b"EVIL", ..Default::default() };
    assert!(c.guard.scanners.as_ref().unwrap().matches(&evil));
    assert_eq!((c.guard.ban_for, c.guard.access[0].rules.len()), (None, 0));
    assert_eq!(c.guard.access[1].rules.len(), 2);
    let limit = &c.guard.limits[0];
    assert_eq!(limit.key, sbc_core::guard::RateKey::Prefix(4));
    assert!(matches!(limit.algorithm, sbc_core::guard::Algorithm::Bucket { burst: 3, .. }));
    assert_eq!(c.guard.fraud[0].concurrent.critical, Some(10));

    let text = format!(
        "{MINIMAL}{}",
        r#"
[guard]
density = 1
remove-after = "1s"
scanner-file = "none.txt"
[[guard.access]]
interface = "nowhere"
methods = "invite"
access = "drop"
[[guard.limit]]
by = "source"
prefix-length = 4
per-second = 0.0
[[guard.fraud]]
name = "x"
hours = [1, 25]
concurrent = [5, 4]
[overload]
cpu-high = 2.0
delay-high = "1ms"
"#
    );
    let told: Vec<String> =
        check_with(&text, dir.path()).unwrap_err().iter().map(ToString::to_string).collect();
    let want = [
        "line 32: 1 is not in 4 to 60000",
        "line 33: remove-after is shorter than two windows",
        &format!(
            "line 34: cannot read {}/none.txt: No such file or directory (os error 2)",
            dir.path().display()
        ),
        "line 36: there is no interface \"nowhere\"",
        "line 37: \"invite\" is no method: they are upper case, as INVITE",
        "line 41: prefix-length is only for limits by prefix",
        "line 42: per-second is not a rate above 0",
        "line 45: hours are [from, to], 0 to 24",
        "line 46: the warning comes after the critical threshold",
        "line 48: overload.cpu-low and cpu-high are shares from 0 to 1, low first",
        "line 49: overload.delay-high is not above delay-low",
    ];
    assert_eq!(told, want);
}

#[test]
fn countries_zones_and_limits_tell_what_is_wrong_with_its_line() {
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("bad.mmdb"), "no such thing").unwrap();
    let told = |text: &str| match check_with(&format!("{MINIMAL}{text}"), base.path()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(|p| p.message).collect::<Vec<_>>(),
    };
    let one = |text: &str| {
        let all = told(text);
        assert_eq!(all.len(), 1, "{text}: {all:?}");
        all[0].clone()
    };
    let bad = one("[guard]\ncountry-file = \"bad.mmdb\"\n");
    assert!(bad.contains("bad.mmdb: not a file of MaxMind's format"), "{bad}");
    let missing = one("[guard]\ncountry-file = \"none.mmdb\"\n");
    assert!(missing.starts_with("cannot read "), "{missing}");
    let listed = format!("{MINIMAL}[guard]\n").replace(
        "name = \"outside\"",
        "name = \"outside\"\nallow-countries = [\"DE\", \"Germany\"]",
    );
    let problems = check_with(&listed, base.path()).unwrap_err();
    let messages: Vec<&str> = problems.iter().map(|p| &*p.message).collect();
    assert_eq!(
        messages,
        [
            "\"Germany\" is no country: they are two letters of ISO 3166-1, as DE",
            "lists of countries need guard.country-file",
        ]
    );
    assert_eq!(told("[guard]\ntime-zone = \"+02:00\"\n"), Vec::<String>::new());
    assert_eq!(
        one("[guard]\ntime-zone = \"../etc/passwd\"\n"),
        "time-zone \"../etc/passwd\": want a name as Europe/Berlin, or +HH:MM"
    );
    assert_eq!(
        one("[guard]\ntime-zone = \"+25:00\"\n"),
        "time-zone \"+25:00\": no time zone: \"+25:00\" is not -14:00 to +14:00"
    );
    let limit = |keys: &str| one(&format!("[[admission.limit]]\nname = \"l\"\n{keys}\n"));
    assert_eq!(limit("by = \"prefix\"\nmax-calls = 1"), "a limit by prefix needs prefixes");
    assert_eq!(
        limit("by = \"all\"\nmax-calls = 1\nprefixes = \"+49\""),
        "a limit of all calls has neither users nor prefixes"
    );
    assert_eq!(limit("by = \"user\""), "a limit needs max-calls or max-cps");
    assert_eq!(limit("by = \"user\"\nmax-calls = 1\nusers = \"alice\""), "a user is USER@DOMAIN");
    assert_eq!(
        limit("by = \"user\"\nmax-calls = 1\nprefixes = \"+1\""),
        "prefixes are only for limits by prefix"
    );
    assert_eq!(
        one("[[guard.limit]]\nby = \"all\"\nalgorithm = \"network\"\ncluster = true\n"),
        "cluster is only for limits by token bucket"
    );
}

#[test]
fn differences_in_words() {
    let old = MINIMAL.to_owned()
        + "\n[[trunk]]\nname = \"old\"\ninterface = \"inside\"\nsources = \"10.3.0.0/16\"\n[log]\nlevel = \"info\"\n";
    let new = MINIMAL.replace("peers = \"10.0.0.20\"", "peers = \"10.0.0.20\"\nmax-calls = 50\ncredentials = [{ realm = \"r\", username = \"u\", password = \"hunter2\" }]")
        .replace("203.0.113.5", "203.0.113.6")
        + "\n[[trunk]]\nname = \"new\"\ninterface = \"inside\"\nsources = \"10.2.0.0/16\"\n[log]\nlevel = \"debug\"\n";
    let (old, new) = (good(&old), good(&new));
    let told: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "interface \"outside\" advertise: \"203.0.113.5\" → \"203.0.113.6\"",
            "log level: \"info\" → \"debug\"",
            "trunk \"old\": removed",
            "trunk \"pbx\" credentials #1: added",
            "trunk \"pbx\" max-calls: set to 50",
            "trunk \"new\": added",
            "credentials of trunk \"pbx\": content changed",
        ]
    );
    assert!(diff(&new, &new).is_empty());
    assert!(!new.document.to_string().contains("hunter2"));
    assert!(!format!("{new:?}").contains("hunter2"));
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_example_is_good() {
    let env = |name: &str| match name {
        "NODE_IP" => Some("10.0.0.11".to_owned()),
        "PUBLIC_IP" => Some("203.0.113.11".to_owned()),
        "NODE_NAME" => Some("1".to_owned()),
        _ => None,
    };
    let mut seen = Vec::new();
    let mut folders = vec![repository().join("deploy/examples")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let around = Surroundings {
                    base: &folder,
                    env: &env,
                    hostname: "h",
                    cores: 2,
                    interfaces: &[],
                };
                if let Err(problems) = check_in(&text, &around) {
                    panic!("{}: {problems:#?}", path.display());
                }
                seen.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    for name in [
        "carrier.toml",
        "cluster.toml",
        "ipv6.toml",
        "loopback.toml",
        "minimal.toml",
        "upstream.toml",
    ] {
        assert!(seen.iter().any(|s| s == name), "{name} is missing: {seen:?}");
    }
}

/// The document has a heading per section and a row `| `key` | …` per key; what serde knows of
/// each section is asked by giving it a key that it cannot know.
#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let sections = [
        ("[node]", "[node]\n~"),
        ("[[interface]]", "[[interface]]\n~"),
        ("[interface.media]", "[[interface]]\nname=\"i\"\nlisten=[]\n[interface.media]\n~"),
        ("[interface.tls]", "[[interface]]\nname=\"i\"\nlisten=[]\n[interface.tls]\n~"),
        ("[interface.websocket]", "[[interface]]\nname=\"i\"\nlisten=[]\n[interface.websocket]\n~"),
        ("[media]", "[media]\n~"),
        ("[sip]", "[sip]\n~"),
        ("[calls]", "[calls]\n~"),
        ("[transport]", "[transport]\n~"),
        ("[stun]", "[stun]\nlisten=[]\n~"),
        ("[dns]", "[dns]\n~"),
        ("[[trunk]]", "[[trunk]]\n~"),
        ("[trunk.probe]", "[[trunk]]\n[trunk.probe]\n~"),
        ("[trunk.codecs]", "[[trunk]]\n[trunk.codecs]\n~"),
        ("[[trunk.translate-in]]", "[[trunk]]\n[[trunk.translate-in]]\n~"),
        ("[trunk.headers]", "[[trunk]]\n[trunk.headers]\n~"),
        ("[[trunk.credentials]]", "[[trunk]]\n[[trunk.credentials]]\n~"),
        ("[[trunk.register]]", "[[trunk]]\n[[trunk.register]]\n~"),
        ("[trunk.failover]", "[[trunk]]\n[trunk.failover]\n~"),
        ("[trunk.session-timer]", "[[trunk]]\n[trunk.session-timer]\n~"),
        ("[registrar]", "[registrar]\n~"),
        ("[registrar.sql]", "[registrar.sql]\n~"),
        ("[registrar.radius]", "[registrar.radius]\n~"),
        ("[[user]]", "[[user]]\n~"),
        ("[[group]]", "[[group]]\n~"),
        ("[[route]]", "[[route]]\n~"),
        (
            "[[registrar.upstream]]",
            "[registrar]\ntrunk=\"t\"\ndomains=[]\n[[registrar.upstream]]\n~",
        ),
        ("[admission]", "[admission]\n~"),
        ("[[admission.limit]]", "[[admission.limit]]\n~"),
        ("[guard]", "[guard]\n~"),
        ("[[guard.access]]", "[[guard.access]]\n~"),
        ("[[guard.limit]]", "[[guard.limit]]\n~"),
        ("[[guard.fraud]]", "[[guard.fraud]]\n~"),
        ("[overload]", "[overload]\n~"),
        ("[cdr]", "[cdr]\n~"),
        ("[log]", "[log]\n~"),
        ("[metrics]", "[metrics]\n~"),
        ("[admin]", "[admin]\n~"),
        ("[admin.tls]", "[admin.tls]\n~"),
        ("[cluster]", "[cluster]\n~"),
        ("[cluster.join]", "[cluster]\n[cluster.join]\n~"),
        ("[[cluster.address]]", "[cluster]\n[[cluster.address]]\n~"),
    ];
    let document = std::fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    let mut wrong = Vec::new();
    for (section, text) in sections {
        let text = text.replace('~', "qqqqqqqqqqqqqqqqqqqqqqqq = 1\n");
        let told = told(&text);
        let known = told
            .iter()
            .find_map(|t| t.split_once("; known here: ").map(|(_, known)| known.to_owned()))
            .unwrap_or_else(|| panic!("{section}: {told:?}"));
        let mut known: Vec<&str> = known.split(", ").collect();
        let body = document.split_once(&format!("`{section}`\n")).map_or("", |(_, rest)| rest);
        let body = body.split("\n#").next().unwrap_or("");
        let mut documented: Vec<&str> =
            body.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
        known.sort_unstable();
        documented.sort_unstable();
        if known != documented {
            wrong.push(format!("{section}: known {known:?}, documented {documented:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const PHONES: &str = "\n[[trunk]]\nname = \"phones\"\ninterface = \"inside\"\n\
     [registrar]\ntrunk = \"phones\"\ndomains = [\"Example.com\"]\n";

#[test]
fn a_registrar_with_users() {
    let md5 = "0".repeat(32);
    let text = format!(
        "{MINIMAL}{PHONES}max-contacts = 3\nwhen-full = \"reject\"\nkeepalive = \"crlf\"\n\
         [[user]]\nname = \"alice\"\nha1-md5 = \"{md5}\"\naliases = [\"+4930\"]\n"
    );
    let config = good(&text);
    assert!(!format!("{:?}", config.document).contains(&md5), "secrets stay inside");
    let trunk = config.routing.trunks.iter().find(|t| &*t.name == "phones").unwrap();
    assert!(trunk.users && trunk.symmetric && trunk.latch == sbc_core::media::Latch::Force);
    assert_eq!(&*trunk.peers[0].host, "example.com");
    let registrar = config.registrar.unwrap();
    assert_eq!(registrar.policy.contacts_max, 3);
    assert_eq!(registrar.policy.auth.as_ref().map(|a| a.realm.as_str()), Some("Example.com"));
    assert!(registrar.users.owns("alice", "alice@example.com"));
    assert_eq!(registrar.users.resolve("+4930@example.com"), "alice@example.com");
}

#[test]
fn a_registrar_tells_what_is_wrong_with_its_line() {
    let lines = |text: &str| format!("{MINIMAL}{text}").lines().count();
    let text = "\n[[user]]\nname = \"a\"\n";
    let at = lines(text) - 1;
    assert_eq!(
        told(&format!("{MINIMAL}{text}")),
        [format!("line {at}: there are users and no [registrar]")]
    );
    let text = format!(
        "{PHONES}algorithms = [\"MD4\"]\nservice-route = [\"sip:x\"]\n\
         [[user]]\nname = \"alice\"\nha1-md5 = \"zz\"\naliases = [\"x@elsewhere\"]\n"
    );
    let end = lines(&text);
    let problems = told(&format!("{MINIMAL}{text}"));
    let expected = [
        format!("line {}: algorithms are \"SHA-256\" and \"MD5\"", end - 5),
        format!("line {}: a route looks like \"<sip:host;lr>\"", end - 4),
        format!("line {}: an HA1 of this kind has 32 hexadecimal digits", end - 1),
        format!("line {end}: \"x@elsewhere\" is not of a domain served"),
    ];
    assert_eq!(problems, expected);
}

#[test]
fn secured_listeners_tell_what_they_miss_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    std::fs::write(path("a.pem"), certificate.pem()).unwrap();
    std::fs::write(path("a.key"), key.serialize_pem()).unwrap();
    let with = |rest: &str| {
        format!(
            "{MINIMAL}\n[[interface]]\nname = \"web\"\n\
             listen = [\"tls://192.0.2.77:5061\", \"wss://192.0.2.77:5061\"]\n{rest}"
        )
    };
    let both = |chain: &str, key: &str| {
        let (chain, key) = (path(chain), path(key));
        format!("tls = {{ certificates = [{{ chain = \"{chain}\", key = \"{key}\" }}] }}\n")
    };
    let config = good(&with(&both("a.pem", "a.key")));
    let web = config.interfaces.iter().find(|i| &*i.name == "web").unwrap();
    assert!(config.doors[&web.id].tls.is_some());
    let end = with("x").lines().count();
    let needs = "this listener needs [interface.tls] with certificates";
    assert_eq!(told(&with("")), [format!("line {}: {needs}", end - 1)]);
    let swapped = told(&with(&both("a.key", "a.key")));
    assert_eq!(swapped, [format!("line {end}: {}: no certificate", path("a.key"))]);
    let missing = told(&with(&both("b.pem", "a.key")));
    assert!(missing[0].starts_with(&format!("line {end}: {}", path("b.pem"))), "{missing:?}");
    let origins = format!("{}websocket = {{ origins = [\"phone\"] }}\n", both("a.pem", "a.key"));
    let wrong = "an origin looks like \"https://phone.example.com\"";
    assert_eq!(told(&with(&origins)), [format!("line {}: {wrong}", end + 1)]);
}

#[test]
fn a_stun_server_has_whole_addresses_of_its_own() {
    let with = |rest: &str| format!("{MINIMAL}\n[stun]\n{rest}");
    let stun = good(&with("listen = \"192.0.2.10:3478\"\n")).stun.unwrap();
    assert_eq!(stun.listen, ["192.0.2.10:3478".parse().unwrap()]);
    assert_eq!((stun.per_source, stun.per_second, stun.sources_max), (10, 10_000, 65_536));
    let line = with("x").lines().count();
    for (listen, wrong) in [
        ("[]", "[stun] listens nowhere"),
        (
            "[\"0.0.0.0:3478\"]",
            "0.0.0.0:3478 is all addresses: an answer must leave from the one that was asked, name it",
        ),
        ("[\"192.0.2.10:0\"]", "192.0.2.10:0 has no port"),
        ("[\"192.0.2.10:5\", \"192.0.2.10:5\"]", "192.0.2.10:5 is there twice"),
        (
            "[\"192.0.2.10:5060\"]",
            "192.0.2.10:5060 is an interface's: binding requests are answered there as it is",
        ),
    ] {
        let at = if listen == "[]" { line - 1 } else { line };
        assert_eq!(told(&with(&format!("listen = {listen}\n"))), [format!("line {at}: {wrong}")]);
    }
    let text = with("listen = \"192.0.2.10:3478\"\nper-source = 0\nmax-sources = 5\n");
    let expected = [
        format!("line {}: 0 is not in 1 to 1000000", line + 1),
        format!("line {}: 5 is not in 1000 to 10000000", line + 2),
    ];
    assert_eq!(told(&text), expected);
    let changes = diff(&good(MINIMAL), &good(&with("listen = \"192.0.2.10:3478\"\n")));
    assert!(changes.len() == 1 && changes[0].restart, "{changes:?}");
    let of = |text: &str| good(&format!("{MINIMAL}{PHONES}{text}")).registrar.unwrap();
    let stun = of("keepalive = \"stun\"\nkeepalive-longest = \"5m\"\n").policy.keepalive.unwrap();
    assert_eq!(stun.kind, sbc_core::registrar::KeepaliveKind::Stun);
}
