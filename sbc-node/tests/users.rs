//! Users and registrations of a running node by `sbcctl`: added with a password that nobody sees,
//! let in at once, watched, taken out and moved.

mod process;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use process::eventually;
use process::register::{node, registering, tell};
use serde_json::Value;

#[test]
fn users_are_added_changed_and_removed_while_the_node_runs() {
    let node = node();
    let mut phone = registering(&node);
    let (code, out) = tell(&node, "users add alice --alias +4930", "secret\n");
    assert_eq!(code, 0, "{out}");
    let path = node.path("users");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# ours\nalice example.com md5="), "{text}");
    assert!(text.contains(" sha256=") && text.ends_with(" aliases=+4930\n"), "{text}");
    assert!(!text.contains("secret"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(phone.register("alice", "secret", 600), "200");
    assert_eq!(phone.register("alice", "other", 600), "401");

    assert_eq!(tell(&node, "users passwd alice", "other\n").0, 0);
    assert_eq!(phone.register("alice", "secret", 600), "401");
    assert_eq!(phone.register("alice", "other", 600), "200");
    let list = node.json("users list");
    assert_eq!(list["realm"], "example.com");
    assert_eq!(list["users"][0]["name"], "alice");
    assert_eq!(list["users"][0]["aliases"][0], "+4930@example.com");
    assert_eq!(list["users"][0]["algorithms"], serde_json::json!(["MD5", "SHA-256"]));

    // What makes no sense changes nothing, in the file or in force.
    for (words, input, why) in [
        ("users add alice", "x\n", "is there already"),
        ("users add bob --alias +4930", "x\n", "the alias \"+4930@example.com\" is taken"),
        ("users add bob --address x@elsewhere.org", "x\n", "not of a domain served"),
        ("users add bob", "\n", "an empty password"),
        ("users add b@b", "x\n", "is no user name"),
        ("users passwd carol", "x\n", "there is no user \"carol\""),
        ("users remove carol", "", "there is no user \"carol\""),
    ] {
        let (code, out) = tell(&node, words, input);
        assert!(code == 1 && out.contains(why), "{words}: {code} {out}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    assert_eq!(tell(&node, "users remove alice", "").0, 0);
    assert_eq!(node.json("users list")["total"], 0);
    assert_eq!(phone.register("alice", "other", 600), "401");
    // By itself, where no node runs yet.
    let file = node.path("other").display().to_string();
    let add = format!("users add zoe --file {file} --realm example.com --algorithms md5");
    assert_eq!(tell(&node, &add, "pw\n").0, 0);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("zoe example.com md5=") && !text.contains("sha256"), "{text}");
    node.stop();
}

#[test]
fn a_password_is_asked_for_without_echo() {
    let node = node();
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut terminal = File::from(pty.master);
    let mut child = Command::new(env!("CARGO_BIN_EXE_sbcctl"))
        .args(["--socket", node.socket.to_str().unwrap(), "users", "add", "bob"])
        .stdin(Stdio::from(pty.slave))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = child.stderr.take().unwrap();
    let mut asked = String::new();
    for prompt in ["Password of bob: ", "Once more: "] {
        while !asked.ends_with(prompt) {
            let mut byte = [0];
            assert_eq!(errors.read(&mut byte).unwrap(), 1, "ended: {asked}");
            asked.push(char::from(byte[0]));
        }
        terminal.write_all(b"hush-hush\n").unwrap();
    }
    assert!(child.wait().unwrap().success());
    assert!(!asked.contains("hush"));
    // What the terminal would show: line ends at most.
    let mut shown = [0; 256];
    let count = terminal.read(&mut shown).unwrap_or(0);
    let shown = String::from_utf8_lossy(&shown[..count]).into_owned();
    assert!(shown.trim().is_empty(), "{shown:?}");
    assert_eq!(registering(&node).register("bob", "hush-hush", 600), "200");
    node.stop();
}

#[test]
fn registrations_are_watched_exported_removed_and_imported() {
    let node = node();
    assert_eq!(tell(&node, "users add alice", "secret\n").0, 0);
    let mut phone = registering(&node);
    let mut watching = Command::new(env!("CARGO_BIN_EXE_sbcctl"))
        .args(["--socket", node.socket.to_str().unwrap(), "--output", "json"])
        .args(["registrations", "watch", "alice", "--count", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The watcher is there when events reach it: a phone comes and goes until they did.
    let events = BufReader::new(watching.stdout.take().unwrap());
    let told = std::thread::spawn(move || events.lines().map_while(Result::ok).collect::<Vec<_>>());
    eventually("two events", || {
        assert_eq!(phone.register("alice", "secret", 600), "200");
        assert_eq!(phone.register("alice", "secret", 0), "200");
        told.is_finished().then_some(())
    });
    assert!(watching.wait().unwrap().success());
    let told: Vec<Value> =
        told.join().unwrap().iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let kind = |event: &Value| (event["kind"].clone(), event["details"]["contacts"].clone());
    let mut kinds: Vec<_> = told.iter().map(kind).collect();
    kinds.sort_by_key(|k| k.0.to_string());
    let (came, went) = ("registration.registered".into(), "registration.removed".into());
    assert_eq!(kinds, [(came, "1".into()), (went, "0".into())]);
    assert_eq!(told[0]["subject"], "alice@example.com");

    assert_eq!(phone.register("alice", "secret", 600), "200");
    let (code, export) = node.ctl("registrations export");
    assert_eq!((code, export.lines().count()), (0, 1), "{export}");
    let user: Value = serde_json::from_str(&export).unwrap();
    assert_eq!(user["aor"], "alice@example.com");
    assert_eq!(node.ctl("registrations remove alice@example.com").0, 0);
    assert_eq!(node.ctl("registrations export"), (0, String::new()));
    let (code, out) = tell(&node, "registrations import -", &export);
    assert!(code == 0 && out.contains("1 added, 0 refused"), "{out}");
    let again: Value = serde_json::from_str(&node.ctl("registrations export").1).unwrap();
    assert_eq!(again["contacts"][0]["uri"], user["contacts"][0]["uri"]);
    let (code, out) = tell(&node, "registrations import -", "\n{\"aor\"\n");
    assert!(code == 1 && out.contains("- line 2: "), "{out}");
    node.stop();
}
