//! Tidy: what the project's files promise about their own shape.

use std::path::{Path, PathBuf};

const LINES_MAX: usize = 800;

fn files(ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in ["proto", "cluster", "media-anchor", "sbc-node", "tests"] {
        walk(&sbc_tests::root().join(dir), ext, &mut found);
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn walk(dir: &Path, ext: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("read dir") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target" && n != "corpus") {
                walk(&path, ext, found);
            }
        } else if path.extension().is_some_and(|e| e == ext) {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The part of a file that ships: everything before its own test module.
fn shipped(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// Whether a file of the core is only built for tests.
fn is_test(path: &Path) -> bool {
    let in_folder =
        |c: std::path::Component<'_>| c.as_os_str() == "tests" || c.as_os_str() == "sim";
    let name = path.file_stem().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    path.components().any(in_folder) || name == "tests" || name.ends_with("_tests")
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_file_says_what_lives_there() {
    let bad: Vec<String> = files("rs")
        .iter()
        .filter(|p| !read(p).trim_start_matches("#!").starts_with("//!"))
        .map(|p| format!("{}: no //! header", p.display()))
        .collect();
    report(&bad);
}

#[test]
fn no_file_is_a_house_with_too_many_rooms() {
    let bad: Vec<String> = files("rs")
        .iter()
        .map(|p| (p, read(p).lines().count()))
        .filter(|(_, n)| *n > LINES_MAX)
        .map(|(p, n)| format!("{}: {n} lines, at most {LINES_MAX}", p.display()))
        .collect();
    report(&bad);
}

#[test]
fn no_stub_no_ignored_test_no_unbounded_channel() {
    let marks = ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "unbounded_channel", "dbg!("];
    let mut bad = Vec::new();
    for path in files("rs").iter().filter(|p| !p.ends_with("tests/tidy/main.rs")) {
        for (n, line) in read(path).lines().enumerate() {
            if let Some(mark) = marks.iter().find(|m| line.contains(**m)) {
                bad.push(format!("{}:{}: {mark}", path.display(), n + 1));
            }
        }
    }
    report(&bad);
}

/// Cores take time and randomness as arguments and know no sockets and no runtime.
#[test]
fn the_core_has_no_clock_no_socket_no_runtime() {
    let marks = [
        "Instant::now(",
        "SystemTime::now(",
        "thread::sleep",
        "rand::rng(",
        "UdpSocket",
        "TcpStream",
        "tokio::",
        "tonic::",
        "prost::",
        "std::fs",
        "std::thread",
    ];
    let mut bad = Vec::new();
    let core = sbc_tests::root().join("sbc-node/core/src");
    for path in files("rs").iter().filter(|p| p.starts_with(&core)) {
        let text = read(path);
        if is_test(path) {
            continue;
        }
        for (n, line) in shipped(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            if let Some(mark) = marks.iter().find(|m| line.contains(**m)) {
                bad.push(format!("{}:{}: {mark} in the core", path.display(), n + 1));
            }
        }
    }
    report(&bad);
}

/// What each module of the core may import from its siblings.
#[test]
fn core_modules_import_only_what_lies_below_them() {
    let below: &[(&str, &[&str])] = &[
        ("sip", &["sip", "net", "lines", "text"]),
        ("sdp", &["sdp", "media", "lines", "text"]),
        ("digest", &["digest", "sip", "ids", "text"]),
        ("guard", &["guard", "cidr", "net", "sip"]),
        ("transaction", &["transaction", "sip", "net", "timer", "ids", "core"]),
        ("dialog", &["dialog", "sip", "net", "transaction", "timer", "ids", "core"]),
        ("routing", &["routing", "cidr", "sip", "net", "media", "digest", "core"]),
    ];
    let mut bad = Vec::new();
    let core = sbc_tests::root().join("sbc-node/core/src");
    for (module, allowed) in below {
        let of_module = |p: &&PathBuf| p.starts_with(core.join(module)) && !is_test(p);
        for path in files("rs").iter().filter(of_module) {
            let text = read(path);
            for (n, line) in shipped(&text).lines().enumerate() {
                let line = line.trim_start();
                let Some(rest) = line.strip_prefix("use crate::") else { continue };
                let name: String =
                    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if !allowed.contains(&name.as_str()) {
                    bad.push(format!("{}:{}: {module} imports {name}", path.display(), n + 1));
                }
            }
        }
    }
    report(&bad);
}

#[test]
fn every_crate_inherits_the_lints() {
    let bad: Vec<String> = files("toml")
        .iter()
        .filter(|p| p.file_name().is_some_and(|n| n == "Cargo.toml"))
        .filter(|p| !p.to_string_lossy().contains("/fuzz/"))
        .filter(|p| !read(p).contains("[lints]\nworkspace = true"))
        .map(|p| format!("{}: does not inherit the workspace lints", p.display()))
        .collect();
    report(&bad);
}

/// Every metric that the code names is explained in `docs/metrics.md`.
#[test]
fn every_metric_is_documented() {
    let docs =
        std::fs::read_to_string(sbc_tests::root().join("docs/metrics.md")).unwrap_or_default();
    let mut bad = Vec::new();
    for path in files("rs").iter().filter(|p| !p.starts_with(sbc_tests::root().join("tests"))) {
        let text = read(path);
        for piece in shipped(&text).split('"').skip(1).step_by(2) {
            let metric = piece.starts_with("sbc_")
                && piece.len() > 8
                && piece.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            let named = metric && (piece.ends_with("_total") || piece.matches('_').count() >= 2);
            let is_crate = ["sbc_node_core"].contains(&piece);
            if named && !is_crate && !docs.contains(piece) {
                bad.push(format!("{}: metric {piece} is not in docs/metrics.md", path.display()));
            }
        }
    }
    bad.sort();
    bad.dedup();
    report(&bad);
}

/// Names of the tests of a file: what follows a test attribute, and what the macro of the torture
/// messages makes.
fn tests_of(text: &str) -> Vec<&str> {
    let ident = |rest: &str| {
        rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())
    };
    let (mut names, mut marked) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        marked |= line == "#[test]" || line.starts_with("#[tokio::test");
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some(rest) = function.filter(|_| marked) {
            names.push(&rest[..ident(rest)]);
            marked = false;
        }
        if let Some((name, _)) = line.split_once(": \"").filter(|(n, _)| n.starts_with("rfc")) {
            names.push(name);
        }
    }
    names
}

/// `docs/conformance.md` and the last table of `docs/registrar.md` name tests, targets of the Makefile and
/// benchmarks: all of them exist.
#[test]
fn every_test_that_conformance_names_exists() {
    let root = sbc_tests::root();
    let texts: Vec<String> = files("rs").iter().map(|p| read(p)).collect();
    let tests: std::collections::BTreeSet<&str> =
        texts.iter().flat_map(|text| tests_of(text)).collect();
    let makefile = read(&root.join("Makefile"));
    let exists = |name: &str| match name.split_once(' ') {
        Some(("make", target)) => makefile.contains(&format!("\n{target}:")),
        Some(("cargo", bench)) => {
            let words: Vec<&str> = bench.split(' ').collect();
            let ["bench", "-p", package, "--bench", name] = words[..] else { return false };
            let folder = match package {
                "sbc-core" => "sbc-node/core/benches",
                "sbc-tests" => "tests/benches",
                "sbc-cluster" => "cluster/benches",
                other => &format!("{other}/benches"),
            };
            let folder = root.join(folder);
            folder.join(format!("{name}.rs")).exists() || folder.join(name).is_dir()
        }
        _ => tests.contains(name),
    };
    let mut bad = Vec::new();
    let registrar = read(&root.join("docs/registrar.md"));
    let shown = registrar.split_once("\n## Where it is shown\n").map_or("", |(_, shown)| shown);
    let conformance = read(&root.join("docs/conformance.md"));
    for line in conformance.lines().chain(shown.lines()).filter(|l| l.starts_with("| ")) {
        let Some((what, place)) = line.trim_matches('|').rsplit_once('|') else { continue };
        let mut named = place.split('`').skip(1).step_by(2).peekable();
        if named.peek().is_none() && what.trim() != "what" {
            bad.push(format!("{}: nothing shows it", what.trim()));
        }
        bad.extend(named.filter(|n| !exists(n)).map(|n| format!("{}: no {n}", what.trim())));
    }
    report(&bad);
}

/// The last table of `docs/deploy.md` names files and tests: all of them exist.
#[test]
fn every_test_that_deploy_names_exists() {
    let root = sbc_tests::root();
    let texts: Vec<String> = files("rs").iter().map(|p| read(p)).collect();
    let tests: std::collections::BTreeSet<&str> =
        texts.iter().flat_map(|text| tests_of(text)).collect();
    let text = read(&root.join("docs/deploy.md"));
    let table = text.split("\n## Where it is shown\n").nth(1).expect("the table");
    let (mut bad, mut rows) = (Vec::new(), 0);
    for line in table.lines().filter(|l| l.starts_with("| ")).skip(1) {
        let [_, what, place, shown, _] = line.split('|').collect::<Vec<_>>()[..] else {
            bad.push(format!("{line}: not three columns"));
            continue;
        };
        rows += 1;
        let quoted = |text: &str| -> Vec<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let paths = quoted(place).into_iter().filter(|p| p.contains('/'));
        bad.extend(
            paths.filter(|p| !root.join(p).exists()).map(|p| format!("{}: no {p}", what.trim())),
        );
        let names: Vec<String> = quoted(shown).into_iter().filter(|n| n.contains('_')).collect();
        let whole = ["the chart", "the API"].iter().any(|w| shown.contains(w));
        if names.is_empty() && !whole {
            bad.push(format!("{}: nothing shows it", what.trim()));
        }
        bad.extend(
            names
                .iter()
                .filter(|n| !tests.contains(n.as_str()))
                .map(|n| format!("{}: no test {n}", what.trim())),
        );
    }
    assert!(rows > 30, "{rows} rows");
    report(&bad);
}

/// `cargo deny` asks the same where it is installed; this is asked everywhere. Of `OR` and the old `/` one
/// part must be on the list of `deny.toml`, of `AND` every part.
#[test]
fn every_dependency_has_a_licence_of_the_list() {
    let root = sbc_tests::root();
    let deny = read(&root.join("deny.toml"));
    let list = deny.split("allow = [").nth(1).and_then(|l| l.split(']').next()).expect("a list");
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    // Of this platform: what only others need was not even fetched.
    let rustc = std::process::Command::new("rustc").arg("-vV").output().expect("rustc");
    let rustc = String::from_utf8_lossy(&rustc.stdout);
    let host = rustc.lines().find_map(|l| l.strip_prefix("host: ")).expect("a host");
    let out = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--offline",
            "--filter-platform",
            host,
        ])
        .current_dir(&root)
        .output()
        .expect("cargo metadata");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100);
    let denied = deny.split("[bans]").nth(1).expect("bans").split("name = \"").skip(1);
    let denied: Vec<&str> = denied.filter_map(|name| name.split('"').next()).collect();
    assert!(denied.contains(&"openssl-sys"), "{denied:?}");
    // Of every platform and with every feature.
    let lock = read(&root.join("Cargo.lock"));
    let there = lock.split("name = \"").skip(1).filter_map(|name| name.split('"').next());
    let there: Vec<&str> = there.filter(|name| denied.contains(name)).collect();
    assert!(there.is_empty(), "deny.toml keeps out {there:?}");
    let bad: Vec<String> = packages
        .iter()
        .map(|p| (&p["name"], p["license"].as_str().unwrap_or("no licence")))
        .filter(|(_, licence)| !permits(licence, &allowed))
        .map(|(name, licence)| format!("{name}: {licence}"))
        .collect();
    report(&bad);
    for licence in ["(MIT OR X) AND (X OR ISC)", "X/MIT", "MIT AND ISC", "(X) OR MIT"] {
        assert!(permits(licence, &["MIT", "ISC"]), "{licence}");
    }
    for licence in ["X", "MIT AND X", "(MIT OR ISC) AND (X OR Y)", "X OR (MIT AND Y)"] {
        assert!(!permits(licence, &["MIT", "ISC"]), "{licence}");
    }
}

/// Whether an SPDX expression can be kept with the licences of a list.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    let parts = |by: &str| {
        let (mut depth, mut begin, mut found) = (0_i32, 0, Vec::new());
        for (at, c) in expression.char_indices() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            if depth == 0 && expression[at..].starts_with(by) {
                found.push(&expression[begin..at]);
                begin = at + by.len();
            }
        }
        found.push(&expression[begin..]);
        found
    };
    for (by, all) in [(" OR ", false), ("/", false), (" AND ", true)] {
        let parts = parts(by);
        if parts.len() > 1 {
            let mut kept = parts.iter().map(|part| permits(part.trim(), allowed));
            return if all { kept.all(|k| k) } else { kept.any(|k| k) };
        }
    }
    match expression.strip_prefix('(').and_then(|e| e.strip_suffix(')')) {
        Some(inner) => permits(inner, allowed),
        None => allowed.contains(&expression),
    }
}
