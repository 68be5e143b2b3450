//! REGISTER at work: with digest beside Kamailio, memory per binding, many bindings with short
//! refreshes, and a restart with all of them on disk.
//!
//! Method: the system under test runs on core 0, the phones (this program) on core 1; UDP on
//! loopback. CPU is user + system time of the whole process tree, from /proc/PID/stat.
//!
//! - `digest`: every registration is two requests, a 401 and its answer with MD5, the same for both
//!   systems; users and HA1 lie in memory. As many are under way as `WINDOW`; systems take turns,
//!   figures are medians of `ROUNDS`.
//! - `memory`: `MEMORY` users (1,000,000) register once, without digest; resident memory of the node's
//!   process, before and once the transactions of these REGISTERs are over. `memory-cluster`: the same on
//!   a node with a log on disk (a cluster of one), whose tables hold every binding once more.
//! - `refresh`: `REFRESH` users (300,000) register every 60 s, for 75 s each, on a node with a
//!   log on disk (a cluster of one) that holds registrations of an hour with a core registrar (this program
//!   again, on 127.0.0.2; `UPSTREAM=no`: without). Once all are known: CPU, writes to the log and REGISTERs
//!   that reach the core per second, for `REFRESH_SECONDS` (60).
//! - `restart`: the node of `refresh` is ended and started again: until a MESSAGE for a user that
//!   registered before arrives at the phone, and until all users are known.
//!
//! Where many register at once they do so at a pace of at most `PACE` (8,000) a second, which falls
//! while the node sheds REGISTERs (503) or does not answer and rises again after: phones without an
//! answer for half a second ask again. Overload control is as by default.
//!
//! `PHASES` chooses among them.

use std::collections::{HashMap, VecDeque};
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
    for phase in env("PHASES", "digest,memory,memory-cluster,refresh,restart").split(',') {
        match phase {
            "digest" => digest(),
            "memory" => memory(false),
            "memory-cluster" => memory(true),
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
    assert!(!udp_bound(5080), "port 5080 is another's");
    let at = dir.to_string_lossy();
    let mut child = match system {
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
        assert_eq!(child.try_wait().expect("wait"), None, "{system} has ended");
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
    phones: Vec<Phone>,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
struct Phone {
    cseq: u32,
    answered: bool,
}

/// An answer to a REGISTER.
struct Answered {
    user: usize,
    status: u16,
    text: String,
}

impl Phones {
    fn new(count: usize) -> Phones {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))
            .expect("buffer");
        socket.connect(SBC).expect("connect");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        Phones { socket, phones: vec![Phone::default(); count], buffer: vec![0; 65_536] }
    }

    fn register(&mut self, n: usize, expires: u32, authorization: &str) {
        let phone = &mut self.phones[n];
        (phone.cseq, phone.answered) = (phone.cseq + 1, false);
        let cseq = phone.cseq;
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

    /// Registers users until all of them are, `window` at a time, with digest where it is asked for.
    fn all(&mut self, users: usize, expires: u32, window: usize) {
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
                    let late = |at: &Instant| at.elapsed() > PATIENCE;
                    let again: Vec<usize> =
                        under_way.iter().filter(|(_, at)| late(at)).map(|(n, _)| *n).collect();
                    for n in again {
                        self.register(n, expires, "");
                        under_way.insert(n, Instant::now());
                    }
                }
            }
        }
    }

    /// Registers as many as `due` says by now, one user after the other and again from the first,
    /// until `over`. Who has no answer asks again.
    fn paced(
        &mut self,
        expires: u32,
        mut due: impl FnMut(&Tally) -> u64,
        mut over: impl FnMut(&Tally) -> bool,
    ) -> Tally {
        self.socket.set_nonblocking(true).expect("socket");
        let mut tally = Tally::default();
        let mut waiting: VecDeque<(usize, Instant)> = VecDeque::new();
        while !over(&tally) {
            let until = due(&tally);
            let mut idle = tally.sent >= until;
            for _ in 0..until.saturating_sub(tally.sent).min(64) {
                let n = usize::try_from(tally.sent).unwrap_or(0) % self.phones.len();
                self.register(n, expires, "");
                waiting.push_back((n, Instant::now()));
                tally.sent += 1;
            }
            while let Some(answer) = self.receive() {
                idle = false;
                let phone = &mut self.phones[answer.user];
                match answer.status {
                    200 => {
                        tally.answered += u64::from(!phone.answered);
                        phone.answered = true;
                    }
                    503 => tally.shed += 1,
                    100 => {}
                    _ => panic!("{}", answer.text),
                }
            }
            while let Some((n, _)) = waiting.pop_front_if(|(_, at)| at.elapsed() > PATIENCE) {
                if !self.phones[n].answered {
                    self.register(n, expires, "");
                    waiting.push_back((n, Instant::now()));
                    tally.again += 1;
                }
            }
            if idle {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.socket.set_nonblocking(false).expect("socket");
        tally
    }

    /// Registers every user once, as fast as the system bears; how long that took.
    fn fill(&mut self, expires: u32) -> (Duration, Tally) {
        let begin = Instant::now();
        let users = self.phones.len() as u64;
        let mut pace = Pace::new(number("PACE", "8000") as u64);
        let due = |tally: &Tally| pace.due(tally).min(users);
        let tally = self.paced(expires, due, |tally| tally.answered >= users);
        (begin.elapsed(), tally)
    }

    /// Whether a MESSAGE for a user comes out of the system within a tenth of a second. Nameless: the
    /// phones here share one flow, and a node knows it by no more than a thousand of their names.
    fn reached(&mut self, n: usize, attempt: u32) -> bool {
        let (name, local) = (user(n), self.socket.local_addr().expect("address"));
        let text = format!(
            "MESSAGE sip:{name}@example.com SIP/2.0\r\n\
             Via: SIP/2.0/UDP {local};branch=z9hG4bKmessage{attempt};rport\r\nMax-Forwards: 70\r\n\
             From: <sip:anonymous@anonymous.invalid>;tag=m{attempt}\r\nTo: <sip:{name}@example.com>\r\n\
             Call-ID: message-{attempt}@127.0.0.1\r\nCSeq: 1 MESSAGE\r\n\
             Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
        );
        // Nobody may listen yet.
        let _ = self.socket.send(text.as_bytes());
        let limit = Instant::now() + Duration::from_millis(100);
        self.socket.set_nonblocking(true).expect("socket");
        let mut reached = false;
        while !reached && Instant::now() < limit {
            match self.socket.recv(&mut self.buffer) {
                Ok(count) => reached = self.buffer[..count].starts_with(b"MESSAGE "),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        self.socket.set_nonblocking(false).expect("socket");
        reached
    }
}

/// Who has no answer for so long asks again.
const PATIENCE: Duration = Duration::from_millis(500);

/// What became of REGISTERs.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u64,
    answered: u64,
    again: u64,
    shed: u64,
}

/// How many may have registered by now: slower while some are shed or get no answer.
struct Pace {
    /// A second.
    most: u64,
    rate: u64,
    /// Millionths.
    due: u64,
    at: Instant,
    /// When the rate was last looked at, and what was amiss by then.
    judged: Instant,
    amiss: u64,
}

impl Pace {
    fn new(most: u64) -> Pace {
        let now = Instant::now();
        Pace { most, rate: most, due: 0, at: now, judged: now, amiss: 0 }
    }

    fn due(&mut self, tally: &Tally) -> u64 {
        let now = Instant::now();
        let micros = u64::try_from((now - self.at).as_micros()).unwrap_or(0);
        // What could not be sent in time is not made up for.
        self.due = (self.due + self.rate * micros).min((tally.sent + self.rate / 10) * 1_000_000);
        self.at = now;
        if now - self.judged > Duration::from_millis(250) {
            let amiss = tally.shed + tally.again;
            let rate = if amiss > self.amiss { self.rate * 7 / 10 } else { self.rate * 11 / 10 };
            self.rate = rate.clamp(100, self.most);
            (self.judged, self.amiss) = (now, amiss);
        }
        self.due / 1_000_000
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
                let mut phones = Phones::new(users);
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

fn memory(cluster: bool) {
    let count = number("MEMORY", "1000000");
    let dir = tempfile::tempdir().expect("temporary directory");
    write_users(dir.path(), 0);
    let registrar = format!("auth = false\nmax-bindings = {}", count.max(1_000_000) * 2);
    let log = if cluster { on_disk(dir.path()) } else { String::new() };
    let mut node = start("sbc", dir.path(), &registrar, &log).expect("the node");
    settled();
    let before = resident_kib(node.id());
    let (took, tally) = on_core_1(|| Phones::new(count).fill(7_200));
    assert_eq!(metric("sbc_registered_contacts"), count as f64, "not all are known");
    let loaded = resident_kib(node.id());
    settled();
    let after = resident_kib(node.id());
    println!(
        "{count} bindings{} in {:.0} s ({} asked again): {before} KiB before, {loaded} KiB with the \
         transactions, {after} KiB after, {:.0} B each",
        if cluster { " and their log" } else { "" },
        took.as_secs_f64(),
        tally.again,
        (after - before) as f64 * 1024.0 / count as f64
    );
    end(&mut node);
}

fn on_disk(dir: &Path) -> String {
    format!("[cluster]\ndata = \"{}/data\"\n", dir.display())
}

/// Waits until no transaction is left.
fn settled() {
    wait_for("the transactions to be over", Duration::from_secs(120), || {
        let left = metric("sbc_transactions_server") + metric("sbc_transactions_client");
        (left == 0.0).then_some(())
    });
}

/// The value of a metric, summed over its labels; NaN where the node does not answer.
fn metric(name: &str) -> f64 {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect("127.0.0.1:9095") {
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    let lines = text.lines().filter(|l| l.starts_with(name));
    let values = lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok());
    values.reduce(|sum, value| sum + value).unwrap_or(f64::NAN)
}

const PERIOD: Duration = Duration::from_secs(60);

fn refresh(restart: bool) {
    let users = number("REFRESH", "300000");
    let window = Duration::from_secs(number("REFRESH_SECONDS", "60") as u64);
    let dir = tempfile::tempdir().expect("temporary directory");
    write_users(dir.path(), 0);
    let mut cluster = on_disk(dir.path());
    let mut registrar = format!("auth = false\nmax-bindings = {}\n", users.max(1_000_000) * 2);
    if env("UPSTREAM", "yes") == "yes" {
        start_core();
        registrar += "[[registrar.upstream]]\ntrunk = \"core\"\nexpires = \"1h\"\n";
        cluster +=
            &format!("[[trunk]]\nname = \"core\"\ninterface = \"load\"\npeers = \"{CORE}\"\n");
        cluster += "[[route]]\nsource = \"core\"\ntarget = \"phones\"\n";
    }
    let mut nodes = [start("sbc", dir.path(), &registrar, &cluster).expect("the node")];
    let mut phones = Phones::new(users);
    on_core_1(|| refreshes(&mut phones, &nodes, window));
    let known = metric("sbc_registered_contacts");
    end(&mut nodes[0]);
    if restart {
        let begin = Instant::now();
        let mut node = start("sbc", dir.path(), &registrar, &cluster).expect("the node");
        let listens = begin.elapsed();
        let mut attempt = 0;
        let served = wait_for("a user to be reached", Duration::from_secs(120), || {
            attempt += 1;
            phones.reached(users / 2, attempt).then(|| begin.elapsed())
        });
        let all = wait_for("all users to be known", Duration::from_secs(120), || {
            (metric("sbc_registered_contacts") >= known).then(|| begin.elapsed())
        });
        println!(
            "restart with {known:.0} bindings on disk: listens after {:.2} s, a user is reached after {:.2} s, \
             all are known after {:.2} s; {} KiB resident",
            listens.as_secs_f64(),
            served.as_secs_f64(),
            all.as_secs_f64(),
            resident_kib(node.id())
        );
        end(&mut node);
    }
}

/// Every user registers once a period; what that costs once all are known.
fn refreshes(phones: &mut Phones, nodes: &[Child], window: Duration) {
    let users = phones.phones.len() as u64;
    let begin = Instant::now();
    let mut measured: Option<Point> = None;
    let mut at = Instant::now();
    let due = |_: &Tally| {
        let due = u128::from(users) * begin.elapsed().as_millis() / PERIOD.as_millis();
        u64::try_from(due).unwrap_or(u64::MAX)
    };
    let tally = phones.paced(75, due, |tally| match &measured {
        Some(from) => from.at.elapsed() >= window,
        None if begin.elapsed() < PERIOD || at.elapsed() < Duration::from_secs(1) => false,
        None => {
            assert!(begin.elapsed() < 4 * PERIOD, "not all are known: {tally:?}");
            at = Instant::now();
            if metric("sbc_registered_contacts") == users as f64 {
                measured = Some(Point::now(nodes, tally));
            }
            false
        }
    });
    let (from, to) = (measured.expect("a first point"), Point::now(nodes, &tally));
    let time = (to.at - from.at).as_secs_f64();
    let rate = |of: fn(&Point) -> f64| (of(&to) - of(&from)) / time;
    println!(
        "{users} bindings with 60 s refreshes over {time:.0} s: {:.0} REGISTER/s answered ({} asked again in \
         all), {:.1} % of a core, {:.1} bindings written to the log and {:.1} REGISTERs to the core per \
         second ({} to the core in all), {:.0} ran out, {} KiB resident",
        rate(|p| p.tally.answered as f64),
        tally.again,
        rate(|p| p.cpu) * 100.0,
        rate(|p| p.written),
        rate(|p| p.asked as f64),
        to.asked,
        metric("sbc_registrations_expired_total"),
        resident_kib(nodes[0].id())
    );
}

/// Counters at one moment.
struct Point {
    at: Instant,
    cpu: f64,
    written: f64,
    asked: u64,
    tally: Tally,
}

impl Point {
    fn now(nodes: &[Child], tally: &Tally) -> Point {
        Point {
            at: Instant::now(),
            cpu: cpu(nodes),
            written: metric("sbc_cluster_bindings_written_total"),
            asked: ASKED.load(Ordering::Relaxed),
            tally: *tally,
        }
    }
}
