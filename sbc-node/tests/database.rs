//! Users in PostgreSQL: let in by it, refused while it is down or slow, let in again; users of the
//! file never wait for it.

mod process;

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
}

impl Postgres {
    fn start() -> Postgres {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("package postgresql");
        let programs = versions.flatten().map(|v| v.path().join("bin")).max().expect("a version");
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap().to_owned();
        if nix::unistd::geteuid().is_root() {
            assert!(Command::new("chown").args(["postgres", &at]).status().unwrap().success());
        }
        let mut new = Postgres { dir, programs, child: None };
        let words = ["-D", &format!("{at}/data"), "-A", "trust", "-U", "sbc", "--no-sync"];
        let made = new.program("initdb", &words).stdout(Stdio::null()).status().unwrap();
        assert!(made.success());
        new.run();
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
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the database", || self.sql("select 1").success().then_some(()));
    }

    fn psql(&self, text: &str) -> Command {
        let at = self.at().to_str().unwrap();
        let mut command =
            self.program("psql", &["-q", "-h", at, "-U", "sbc", "-d", "postgres", "-c", text]);
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
    assert!(stats["stats"].as_array().unwrap().len() == 3, "{stats}");
    node.stop();
}
