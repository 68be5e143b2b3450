//! Users in PostgreSQL: let in by it, refused while it is down or slow, let in again; users of the
//! file never wait for it; over TLS where `sslmode=require` says so.

mod process;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use process::register::{add_registrar, registering, tell};
use process::{Node, eventually};
use sbc_core::digest::Algorithm;
use tempfile::TempDir;

/// A PostgreSQL on a unix socket in a directory of its own.
struct Postgres {
    dir: TempDir,
    programs: PathBuf,
    child: Option<Child>,
    /// More for its command line.
    more: Vec<String>,
    port: u16,
}

impl Postgres {
    fn start() -> Postgres {
        let mut new = Postgres::made();
        new.run();
        new
    }

    /// Reached by TLS on this port as well, and by TCP without it not at all.
    fn start_secured(port: u16) -> Postgres {
        let mut new = Postgres::made();
        let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let file = |name: &str, text: String| {
            let path = new.at().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if nix::unistd::geteuid().is_root() {
                assert!(
                    Command::new("chown").arg("postgres").arg(&path).status().unwrap().success()
                );
            }
        };
        file("server.pem", pair.cert.pem());
        file("server.key", pair.signing_key.serialize_pem());
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
        std::fs::write(new.at().join("data/pg_hba.conf"), rules).unwrap();
        let at = new.at().to_str().unwrap();
        new.more = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={at}/server.pem"),
            format!("ssl_key_file={at}/server.key"),
        ]
        .into_iter()
        .flat_map(|setting| ["-c".to_owned(), setting])
        .collect();
        new.port = port;
        new.run();
        new
    }

    fn made() -> Postgres {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("package postgresql");
        let programs = versions.flatten().map(|v| v.path().join("bin")).max().expect("a version");
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap().to_owned();
        if nix::unistd::geteuid().is_root() {
            assert!(Command::new("chown").args(["postgres", &at]).status().unwrap().success());
        }
        let new = Postgres { dir, programs, child: None, more: Vec::new(), port: 5432 };
        let words = ["-D", &format!("{at}/data"), "-A", "trust", "-U", "sbc", "--no-sync"];
        let made = new.program("initdb", &words).stdout(Stdio::null()).status().unwrap();
        assert!(made.success());
        new
    }

    /// Not as root: it refuses to run so.
    fn program(&self, name: &str, words: &[&str]) -> Command {
        let path = self.programs.join(name);
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn at(&self) -> &Path {
        self.dir.path()
    }

    fn run(&mut self) {
        let at = self.at().to_str().unwrap().to_owned();
        let data = format!("{at}/data");
        let words = ["-D", &data, "-k", &at, "-c", "listen_addresses=", "-c", "fsync=off"];
        let log = std::fs::File::create(self.at().join("log")).unwrap();
        let mut command = self.program("postgres", &words);
        command.args(&self.more);
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the database", || self.sql("select 1").success().then_some(()));
    }

    fn psql(&self, text: &str) -> Command {
        let at = self.at().to_str().unwrap();
        let port = self.port.to_string();
        let words = ["-q", "-h", at, "-p", &port, "-U", "sbc", "-d", "postgres", "-c", text];
        let mut command = self.program("psql", &words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn sql(&self, text: &str) -> std::process::ExitStatus {
        self.psql(text).status().unwrap()
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // At once; what its clients do does not matter.
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGQUIT);
            child.wait().unwrap();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ha1(name: &str) -> String {
    Algorithm::Md5.ha1(name, "example.com", "secret")
}

#[test]
fn users_of_a_database_that_goes_down_gets_slow_and_comes_back() {
    let mut postgres = Postgres::start();
    let table = "create table phones (name text primary key, md5 text not null, aor text)";
    assert!(postgres.sql(table).success());
    for n in 0..8 {
        let name = format!("sql{n}");
        let row = format!("insert into phones values ('{name}', '{}', null)", ha1(&name));
        assert!(postgres.sql(&row).success());
    }
    let node = Node::start();
    add_registrar(
        &node,
        &format!(
            "[registrar.sql]\ndatabase = \"host={} user=sbc dbname=postgres\"\n\
             query = \"select md5 as ha1_md5, aor as addresses from phones where name = $1\"\n\
             wait = \"1s\"\nconnections = 2\n",
            postgres.at().display()
        ),
    );
    let (code, out) = tell(&node, "config reload", "");
    assert!(code == 1 && out.contains("registrar sql") && out.contains("restart"), "{out}");
    let node = node.restarted();
    assert!(!node.ctl("config show").1.contains("dbname"), "it may hold a password");
    assert_eq!(tell(&node, "users add fixed --algorithms md5", "secret\n").0, 0);
    let mut phone = registering(&node);
    assert_eq!(phone.register("sql0", "secret", 600), "200");
    assert_eq!(phone.register("sql0", "wrong", 600), "401");
    assert_eq!(phone.register("nobody", "secret", 600), "401");
    assert_eq!(phone.register("fixed", "secret", 600), "200");

    postgres.stop();
    assert_eq!(phone.register("sql1", "secret", 600), "503");
    assert_eq!(phone.register("sql0", "secret", 600), "200", "remembered");
    assert_eq!(phone.register("fixed", "secret", 600), "200");

    postgres.run();
    eventually("the database again", || {
        (phone.register("sql2", "secret", 600) == "200").then_some(())
    });
    // Slow: somebody holds the table, and whoever asks waits for the bounded time.
    let mut locking =
        postgres.psql("begin; lock table phones; select pg_sleep(600)").spawn().unwrap();
    eventually("the lock", || {
        let status = postgres.sql("set lock_timeout = 100; select 1 from phones");
        (!status.success()).then_some(())
    });
    assert_eq!(phone.register("sql3", "secret", 600), "503");
    assert_eq!(phone.register("fixed", "secret", 600), "200");
    assert!(postgres.sql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()").success());
    locking.wait().unwrap();
    eventually("an answer again", || {
        (phone.register("sql4", "secret", 600) == "200").then_some(())
    });
    let stats = node.json("stats sbc_registrar_lookups");
    assert!(stats["stats"].as_array().unwrap().len() == 4, "{stats}");
    node.stop();
}

#[test]
fn users_of_a_database_over_tls() {
    // Bound for a moment to find a port that is free.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let postgres = Postgres::start_secured(free);
    assert!(postgres.sql("create table phones (name text primary key, md5 text)").success());
    let row = format!("insert into phones values ('sql0', '{}')", ha1("sql0"));
    assert!(postgres.sql(&row).success());
    let lines = |mode: &str, ca: &str| {
        format!(
            "[registrar.sql]\ndatabase = \"host=127.0.0.1 port={free} user=sbc dbname=postgres {mode}\"\n\
             query = \"select md5 as ha1_md5 from phones where name = $1\"\n{ca}"
        )
    };
    let own = format!("ca = \"{}\"\n", postgres.at().join("server.pem").display());
    for (mode, ca, status) in [
        ("sslmode=require", own.as_str(), "200"),
        // The system's authorities have not signed it, and whoever speaks in the clear is not let in.
        ("sslmode=require", "", "503"),
        ("sslmode=disable", "", "503"),
        ("", "", "503"),
    ] {
        let node = Node::start();
        add_registrar(&node, &lines(mode, ca));
        let node = node.restarted();
        assert_eq!(registering(&node).register("sql0", "secret", 600), status, "{mode} {ca}");
        node.stop();
    }
    let node = Node::start();
    add_registrar(&node, &lines("sslmode=prefer", &own));
    let (code, out) = tell(&node, "config reload", "");
    assert!(code != 0 && out.contains("ca is for a database with sslmode=require"), "{out}");
    node.stop();
}
