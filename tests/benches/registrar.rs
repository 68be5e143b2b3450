//! REGISTER at work: with digest beside Kamailio, memory per binding, many bindings with short
//! refreshes, and a restart with all of them on disk.
//!
//! Method: the system under test runs on core 0, the phones (this program) on core 1; UDP on
//! loopback. CPU is user + system time of the whole process tree, from /proc/PID/stat.
//!
//! - `digest`: every registration is two requests, a 401 and its answer with MD5, the same for both
//!   systems; users and HA1 lie in memory. As many are under way as `WINDOW`; systems take turns,
//!   figures are medians of `ROUNDS`.
//! - `memory`: `MEMORY` users (1,000,000) register once, without digest; resident memory of the whole
//!   process, before and after.
//! - `refresh`: `REFRESH` users (300,000) register every 60 s, for `REFRESH_SECONDS`, on a node with a
//!   log on disk (a cluster of one) that holds registrations of an hour with a core registrar (this program
//!   again, on 127.0.0.2; `UPSTREAM=no`: without); CPU, writes to the log and REGISTERs that reach the
//!   core per second in the last half.
//! - `restart`: the node of `refresh` is ended and started again: until a user that registered before
//!   is known again, and until all are.
//!
//! `PHASES` chooses among them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sbc_core::digest::{Account, Algorithm, Answerer};
use sbc_tests::load::{cpu, end, env, median, pinned, resident_kib, udp_bound};
use sbc_tests::{binary, root, wait_for};

const SBC: &str = "127.0.0.1:5080";
const CORE: &str = "127.0.0.2:5090";

fn number(name: &str, default: &str) -> usize {
    env(name, default).parse().unwrap_or_else(|_| panic!("{name} is no number"))
}

fn main() {
    for phase in env("PHASES", "digest,memory,refresh,restart").split(',') {
        match phase {
            "digest" => digest(),
            "memory" => memory(),
            "refresh" => refresh(env("PHASES", "restart").contains("restart")),
            "restart" => {}
            other => panic!("unknown phase {other}"),
        }
    }
}

fn stay_on_core_1() {
    let mut set = nix::sched::CpuSet::new();
    set.set(1).expect("core 1");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("affinity");
}

// ---- systems ---------------------------------------------------------------------------------

fn start(system: &str, dir: &Path, registrar: &str, cluster: &str) -> Option<Child> {
    let at = dir.to_string_lossy();
    let child = match system {
        "sbc" => {
            let text = std::fs::read_to_string(root().join("tests/peers/sbc-register.toml"));
            let text = text.expect("configuration").replace("@DIR@", &at);
            let text = text.replace("@REGISTRAR@", registrar).replace("@CLUSTER@", cluster);
            let file = dir.join("sbc.toml");
            std::fs::write(&file, text).expect("write");
            let args = ["run", "--config", &file.to_string_lossy()];
            pinned(0, &binary("sbc-node").to_string_lossy(), &args, dir)
        }
        "kamailio" => {
            let text = std::fs::read_to_string(root().join("tests/peers/kamailio-register.cfg"));
            let file = dir.join("kamailio.cfg");
            std::fs::write(&file, text.expect("configuration").replace("@DIR@", &at))
                .expect("write");
            let config = file.to_string_lossy();
            std::process::Command::new("kamailio").arg("-v").output().ok()?;
            pinned(
                0,
                "kamailio",
                &["-f", &config, "-DD", "-m", "512", "-M", "16", "-x", "fm", "-X", "fm"],
                dir,
            )
        }
        other => panic!("unknown system {other}"),
    };
    wait_for(&format!("{system} to listen"), Duration::from_secs(120), || {
        udp_bound(5080).then_some(())
    });
    Some(child)
}

/// Users and their HA1 as each system reads them.
fn write_users(dir: &Path, count: usize) {
    let mut ours = String::new();
    let mut theirs =
        "key_name(string) key_type(int) value_type(int) key_value(string) expires(int)\n"
            .to_owned();
    for n in 0..count {
        let name = user(n);
        let ha1 = Algorithm::Md5.ha1(&name, "example.com", "secret");
        writeln!(ours, "{name} example.com md5={ha1}").expect("text");
        writeln!(theirs, "{name}:0:0:{ha1}:0").expect("text");
    }
    std::fs::write(dir.join("users"), ours).expect("write");
    let table = dir.join("kamailio");
    std::fs::create_dir_all(&table).expect("directory");
    std::fs::write(table.join("ha1"), theirs).expect("write");
    let version = "table_name(string) table_version(int)\nha1:2\n";
    std::fs::write(table.join("version"), version).expect("write");
}

fn user(n: usize) -> String {
    format!("user{n:07}")
}

// ---- phones ----------------------------------------------------------------------------------

struct Phones {
    socket: UdpSocket,
    cseq: HashMap<usize, u32>,
    buffer: Vec<u8>,
}

/// An answer to a REGISTER.
struct Answered {
    user: usize,
    status: u16,
    text: String,
}

impl Phones {
    fn new() -> Phones {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))
            .expect("buffer");
        socket.connect(SBC).expect("connect");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        Phones { socket, cseq: HashMap::new(), buffer: vec![0; 65_536] }
    }

    fn register(&mut self, n: usize, expires: u32, authorization: &str) {
        let cseq = self.cseq.entry(n).or_default();
        *cseq += 1;
        let name = user(n);
        let local = self.socket.local_addr().expect("address");
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP {local};branch=z9hG4bK{n:x}-{cseq:x};rport\r\nMax-Forwards: 70\r\n\
             From: <sip:{name}@example.com>;tag=a{n:x}\r\nTo: <sip:{name}@example.com>\r\n\
             Call-ID: {n:08x}-3c26700c-1a2b3c4d@127.0.0.1\r\nCSeq: {cseq} REGISTER\r\n\
             Contact: <sip:{name}@{local};ob>\r\nExpires: {expires}\r\n\
             User-Agent: bench\r\n{authorization}Content-Length: 0\r\n\r\n"
        );
        // What is lost is asked for again.
        let _ = self.socket.send(text.as_bytes());
    }

    fn receive(&mut self) -> Option<Answered> {
        let count = self.socket.recv(&mut self.buffer).ok()?;
        let text = String::from_utf8_lossy(&self.buffer[..count]).into_owned();
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let call_id = text.split_once("Call-ID: ")?.1;
        let user = usize::from_str_radix(call_id.get(..8)?, 16).ok()?;
        Some(Answered { user, status, text })
    }

    /// Registers users until all of them are, `window` at a time; how long it took.
    fn all(&mut self, users: usize, expires: u32, window: usize) -> Duration {
        let begin = Instant::now();
        let mut under_way: HashMap<usize, Instant> = HashMap::new();
        let (mut next, mut done) = (0, 0);
        while done < users {
            while under_way.len() < window && next < users {
                self.register(next, expires, "");
                under_way.insert(next, Instant::now());
                next += 1;
            }
            match self.receive() {
                Some(a) if a.status == 401 && under_way.contains_key(&a.user) => {
                    let value = authorize(&a);
                    self.register(a.user, expires, &format!("Authorization: {value}\r\n"));
                }
                Some(a) if a.status == 200 => {
                    done += usize::from(under_way.remove(&a.user).is_some());
                }
                Some(a) if a.status == 100 || a.status == 401 => {}
                // A core that is full sheds some: they are asked again, as phones do.
                Some(a) if a.status == 503 => {
                    if let Some(at) = under_way.get_mut(&a.user) {
                        *at = Instant::now();
                    }
                }
                Some(a) => panic!("{}", a.text),
                None => {
                    let late = |at: &Instant| at.elapsed() > Duration::from_millis(500);
                    let again: Vec<usize> =
                        under_way.iter().filter(|(_, at)| late(at)).map(|(n, _)| *n).collect();
                    for n in again {
                        self.register(n, expires, "");
                        under_way.insert(n, Instant::now());
                    }
                }
            }
        }
        begin.elapsed()
    }

    /// Registers every user once in each period, evenly, until `until`; how many were answered.
    fn evenly(&mut self, users: usize, period: Duration, until: Instant) -> u64 {
        self.socket.set_nonblocking(true).expect("socket");
        let begin = Instant::now();
        let (mut sent, mut answered) = (0usize, 0);
        while Instant::now() < until {
            let due = users as u128 * begin.elapsed().as_millis() / period.as_millis();
            let due = usize::try_from(due).unwrap_or(usize::MAX);
            while sent < due {
                self.register(sent % users, 60, "");
                sent += 1;
            }
            let mut any = false;
            while let Some(a) = self.receive() {
                answered += u64::from(a.status == 200);
                any = true;
            }
            if !any {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.socket.set_nonblocking(false).expect("socket");
        answered
    }
}

fn authorize(answer: &Answered) -> String {
    let account = Account {
        username: user(answer.user),
        realm: Some("example.com".into()),
        password: "secret".into(),
    };
    let offers = answer.text.lines().filter_map(|l| l.strip_prefix("WWW-Authenticate: "));
    let mut answerer = Answerer::choose(offers, &account).expect("a challenge");
    answerer.authorize("REGISTER", "sip:example.com", b"", "c0ffee")
}

// ---- core registrar --------------------------------------------------------------------------

/// REGISTERs that reached the core.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// A registrar that grants every contact what is asked for, until this program ends.
fn start_core() {
    let socket = UdpSocket::bind(CORE).expect("the core's socket");
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))
        .expect("buffer");
    std::thread::spawn(move || {
        stay_on_core_1();
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if !text.starts_with("REGISTER ") {
                continue;
            }
            ASKED.fetch_add(1, Ordering::Relaxed);
            let mut answer = "SIP/2.0 200 OK\r\n".to_owned();
            for line in text.lines() {
                let name = line.split(':').next().unwrap_or("");
                match name {
                    "Via" | "From" | "Call-ID" | "CSeq" | "Contact" => {
                        write!(answer, "{line}\r\n").expect("text");
                    }
                    "To" => write!(answer, "{line};tag=core\r\n").expect("text"),
                    _ => {}
                }
            }
            answer.push_str("Content-Length: 0\r\n\r\n");
            // What is lost is asked for again.
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    });
}

// ---- phases ----------------------------------------------------------------------------------

fn digest() {
    let (users, rounds) = (number("USERS", "20000"), number("ROUNDS", "3"));
    let window = number("WINDOW", "64");
    let mut table: HashMap<String, Vec<f64>> = HashMap::new();
    let dir = tempfile::tempdir().expect("temporary directory");
    write_users(dir.path(), users);
    for _ in 0..rounds {
        for system in env("SYSTEMS", "sbc,kamailio").split(',') {
            let Some(child) = start(system, dir.path(), "", "") else {
                println!("{system}: not installed, left out");
                continue;
            };
            let mut processes = [child];
            let rate = on_core_1(|| {
                let mut phones = Phones::new();
                phones.all(users, 3_600, window);
                let before = cpu(&processes);
                phones.all(users, 3_600, window);
                users as f64 / (cpu(&processes) - before)
            });
            eprintln!("{system}: {rate:.0} registrations per CPU second");
            table.entry(system.to_owned()).or_default().push(rate);
            end(&mut processes[0]);
        }
    }
    println!("| system | registrations (401 and 200) per CPU second |\n|---|---|");
    for (system, rates) in &table {
        println!("| {system} | {:.0} |", median(rates.iter().copied()));
    }
    if let (Some(ours), Some(theirs)) = (table.get("sbc"), table.get("kamailio")) {
        let of = |rates: &[f64]| median(rates.iter().copied());
        println!("\nsbc / kamailio: {:.2}", of(ours) / of(theirs));
    }
}

/// Runs the phones on a thread of their own core.
fn on_core_1<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let phones = scope.spawn(|| {
            stay_on_core_1();
            f()
        });
        phones.join().expect("the phones")
    })
}

fn memory() {
    let count = number("MEMORY", "1000000");
    let dir = tempfile::tempdir().expect("temporary directory");
    write_users(dir.path(), 0);
    let registrar = format!("auth = false\nmax-bindings = {}", count.max(1_000_000) * 2);
    let mut node = start("sbc", dir.path(), &registrar, "").expect("the node");
    let before = resident_kib(node.id());
    let took = on_core_1(|| Phones::new().all(count, 7_200, 256));
    let after = resident_kib(node.id());
    println!(
        "{count} bindings in {:.0} s: {before} KiB before, {after} KiB after, {:.0} B each",
        took.as_secs_f64(),
        (after - before) as f64 * 1024.0 / count as f64
    );
    end(&mut node);
}

/// The value of a metric, summed over its labels.
fn metric(name: &str) -> f64 {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect("127.0.0.1:9095") {
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    let lines = text.lines().filter(|l| l.starts_with(name));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn refresh(restart: bool) {
    let users = number("REFRESH", "300000");
    let seconds = u64::try_from(number("REFRESH_SECONDS", "180")).expect("seconds");
    let dir = tempfile::tempdir().expect("temporary directory");
    write_users(dir.path(), 0);
    let mut cluster = format!("[cluster]\ndata = \"{}/data\"\n", dir.path().display());
    let mut registrar = format!("auth = false\nmax-bindings = {}\n", users.max(1_000_000) * 2);
    if env("UPSTREAM", "yes") == "yes" {
        start_core();
        registrar += "[[registrar.upstream]]\ntrunk = \"core\"\nexpires = \"1h\"\n";
        cluster +=
            &format!("[[trunk]]\nname = \"core\"\ninterface = \"load\"\npeers = \"{CORE}\"\n");
        cluster += "[[route]]\nsource = \"core\"\ntarget = \"phones\"\n";
    }
    let mut nodes = [start("sbc", dir.path(), &registrar, &cluster).expect("the node")];
    let (share, writes, answered, asked) = on_core_1(|| {
        let mut phones = Phones::new();
        phones.all(users, 60, 256);
        let begin = Instant::now();
        let half = Duration::from_secs(seconds / 2);
        phones.evenly(users, Duration::from_secs(60), begin + half);
        let (spent, written, middle) =
            (cpu(&nodes), metric("sbc_cluster_bindings_written_total"), Instant::now());
        let asked = ASKED.load(Ordering::Relaxed);
        let answered = phones.evenly(users, Duration::from_secs(60), begin + 2 * half);
        let time = middle.elapsed().as_secs_f64();
        let writes = metric("sbc_cluster_bindings_written_total") - written;
        let asked = (ASKED.load(Ordering::Relaxed) - asked) as f64 / time;
        ((cpu(&nodes) - spent) / time, writes / time, answered as f64 / time, asked)
    });
    let in_all = ASKED.load(Ordering::Relaxed);
    println!(
        "{users} bindings with 60 s refreshes: {answered:.0} REGISTER/s answered, {:.0} % of a core, \
         {writes:.0} bindings written to the log and {asked:.1} REGISTERs to the core per second ({in_all} in \
         all), {} KiB resident",
        share * 100.0,
        resident_kib(nodes[0].id())
    );
    let known = metric("sbc_registered_contacts");
    end(&mut nodes[0]);
    if restart {
        let begin = Instant::now();
        let mut node = start("sbc", dir.path(), &registrar, &cluster).expect("the node");
        let served = wait_for("a user to be known", Duration::from_secs(120), || {
            (metric("sbc_registered_contacts") > 0.0).then(|| begin.elapsed())
        });
        let all = wait_for("all users to be known", Duration::from_secs(120), || {
            (metric("sbc_registered_contacts") >= known * 0.99).then(|| begin.elapsed())
        });
        println!(
            "restart with {known:.0} bindings on disk: first known after {:.2} s, all after {:.2} s",
            served.as_secs_f64(),
            all.as_secs_f64()
        );
        end(&mut node);
    }
}
