//! Three nodes, one SBC, between an outside and an inside network; calls with audio over them.
//!
//! ```text
//! out 10.1.0.10 ─┐                        ┌─ 10.2.0.10 in
//!            switch outside          switch inside
//!   10.1.0.1x ┴── n1, n2, n3 (10.3.0.1x) ──┴ 10.2.0.1x
//!   floating: 10.1.0.100 outside, 10.2.0.100 inside, held by one node at a time
//! ```

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sbc_tests::net::{Net, in_ipv6, ip, nft, run, socket_in, stream_in};
use sbc_tests::node::Node;
use sbc_tests::rtp::{End, Talk};
use sbc_tests::sipp::Sipp;
use sbc_tests::wait_for;
use tempfile::TempDir;

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What differs from test to test.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// `address` or `reinvite`.
    pub(crate) failover: &'static str,
    /// Each node's log lies on a file system of its own, so that its power can be cut.
    pub(crate) own_disks: bool,
    /// The nodes are like pods: they make their cluster from a join key, know each other by name
    /// alone, and come back with other addresses.
    pub(crate) pods: bool,
    /// Ringing calls are replicated.
    pub(crate) early: bool,
    /// Everything is IPv6: `fd00:M::H` for each `10.M.0.H` of the picture.
    pub(crate) ipv6: bool,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { failover: "address", own_disks: false, pods: false, early: false, ipv6: false }
    }
}

impl Plan {
    /// A text with addresses, in the family of the plan.
    fn say(self, text: &str) -> String {
        if self.ipv6 { in_ipv6(text) } else { text.to_owned() }
    }
}

pub(crate) struct Three {
    pub(crate) net: Net,
    pub(crate) dir: TempDir,
    pub(crate) nodes: Vec<Option<Node>>,
    plan: Plan,
    /// The last part of each node's addresses.
    hosts: [u32; 3],
    /// Up to which format of the cluster's log each node reads when it starts; `None`: as it is built.
    pub(crate) formats: [Option<u64>; 3],
}

impl Three {
    pub(crate) fn with(plan: Plan) -> Three {
        let net = Net::new(&["out", "in", "n1", "n2", "n3", "swo", "swi", "swc"]);
        for (switch, end, middle) in [("swo", "out", 1), ("swi", "in", 2), ("swc", "", 3)] {
            let members = [(end, 10), ("n1", 11), ("n2", 12), ("n3", 13)];
            let members: Vec<(&str, String)> = members
                .into_iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, last)| (name, plan.say(&format!("10.{middle}.0.{last}/24"))))
                .collect();
            let members: Vec<(&str, &str)> =
                members.iter().map(|(name, a)| (*name, a.as_str())).collect();
            net.bridge(switch, &members);
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut three =
            Three { net, dir, nodes: Vec::new(), plan, hosts: [11, 12, 13], formats: [None; 3] };
        if plan.pods {
            three.start_pods();
            return three;
        }
        for number in 1..=3 {
            if plan.own_disks {
                three.make_disk(number);
            }
            let node = three.start(number);
            three.nodes.push(Some(node));
        }
        three.wait_up(3);
        three
    }

    /// All at once: none is up before all are there.
    fn start_pods(&mut self) {
        self.name_pods(&[1, 2, 3]);
        let nodes = std::thread::scope(|scope| {
            let three = &*self;
            let starting: Vec<_> =
                (1..=3).map(|n| scope.spawn(move || three.start_with(n, JOIN_BY_KEY))).collect();
            starting.into_iter().map(|n| n.join().expect("a pod")).collect::<Vec<_>>()
        });
        self.nodes = nodes.into_iter().map(Some).collect();
        self.wait_up(3);
    }

    /// What the pods resolve: each by its name, and `sbc-peers` to those that are there.
    pub(crate) fn name_pods(&self, there: &[usize]) {
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for number in there {
            let host = self.hosts[number - 1];
            hosts.push_str(&format!("10.3.0.{host} n{number}.sbc-peers sbc-peers\n"));
        }
        for number in 1..=3 {
            // `ip netns exec` puts this file in the place of /etc/hosts.
            let dir = PathBuf::from("/etc/netns").join(self.ns(number));
            std::fs::create_dir_all(&dir).expect("a folder for the namespace");
            // Written in place: processes that run see this very file.
            std::fs::write(dir.join("hosts"), &hosts).expect("hosts");
        }
    }

    /// Gives a node that does not run other addresses, as a pod has that is born again.
    pub(crate) fn readdress(&mut self, number: usize, host: u32) {
        let (ns, old) = (self.ns(number), self.hosts[number - 1]);
        for (device, net) in [("to-swo", 1), ("to-swi", 2), ("to-swc", 3)] {
            sbc_tests::net::ip(&format!("-n {ns} addr del 10.{net}.0.{old}/24 dev {device}"));
            sbc_tests::net::ip(&format!("-n {ns} addr add 10.{net}.0.{host}/24 dev {device}"));
        }
        self.hosts[number - 1] = host;
    }

    pub(crate) fn host(&self, number: usize) -> u32 {
        self.hosts[number - 1]
    }

    /// Starts node `number`; one that has no data yet joins by a token of another.
    pub(crate) fn start(&self, number: usize) -> Node {
        let join = match self.nodes.iter().flatten().next() {
            None => String::new(),
            Some(node) => {
                let token = node.ctl("cluster token");
                let token = token["token"].as_str().expect("a token").to_owned();
                format!(
                    "join = {{ token = \"{token}\", seeds = [\"10.3.0.11\", \"10.3.0.12\", \"10.3.0.13\"] }}"
                )
            }
        };
        self.start_with(number, &join)
    }

    pub(crate) fn start_with(&self, number: usize, join: &str) -> Node {
        let name = format!("n{number}");
        let early = if self.plan.early { "early-dialogs = true\n" } else { "" };
        let join = format!("{early}{join}");
        let config = config(number, self.hosts[number - 1], &join, self.plan.failover);
        let config = if self.plan.pods { podlike(number, &config) } else { config };
        let config = self.plan.say(&config);
        if self.plan.pods {
            let dir = self.dir.path().join(&name);
            std::fs::create_dir_all(&dir).expect("node directory");
            std::fs::write(dir.join("join.key"), "a secret of 32 bytes or more, for tests")
                .expect("key");
        }
        let format = self.formats[number - 1].map(|n| format!("SBC_TEST_FORMAT={n}"));
        let more: Vec<String> = format.into_iter().collect();
        Node::start_as(&self.net.ns(&name), self.dir.path(), &name, &config, &more)
    }

    /// Starts a node that was killed or stopped, and waits until all three are up.
    pub(crate) fn restart(&mut self, number: usize) {
        let node = match self.plan.pods {
            true => self.start_with(number, JOIN_BY_KEY),
            false => self.start(number),
        };
        self.nodes[number - 1] = Some(node);
        self.wait_up(3);
    }

    pub(crate) fn ns(&self, number: usize) -> String {
        self.net.ns(&format!("n{number}"))
    }

    pub(crate) fn any(&self) -> &Node {
        self.nodes.iter().flatten().next().expect("a node is left")
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        self.nodes[number - 1].as_ref().expect("the node runs")
    }

    /// Waits until `count` nodes are up and vote.
    pub(crate) fn wait_up(&self, count: usize) {
        wait_for(&format!("{count} nodes to be up"), LONG, || {
            let status = self.any().try_ctl("cluster status")?;
            let nodes = status["nodes"].as_array()?;
            let ready =
                nodes.iter().filter(|n| n["state"] == "up" && n["role"] != "learner").count();
            (ready >= count).then_some(())
        });
    }

    /// The number of the node that leads, as `asked` sees it.
    pub(crate) fn leader(&self, asked: usize) -> usize {
        wait_for("a leader", LONG, || {
            let status = self.node(asked).try_ctl("cluster status")?;
            number_of(&status, status["leader"].as_u64()?)
        })
    }

    /// Makes node `wanted` lead.
    pub(crate) fn lead(&self, wanted: usize) {
        wait_for("the leadership to go where it is wanted", LONG, || {
            let leader = self.leader(wanted);
            if leader == wanted {
                return Some(());
            }
            let id = self.id(wanted);
            self.node(leader).try_ctl(&format!("cluster transfer-leader {id}"));
            None
        });
    }

    pub(crate) fn id(&self, number: usize) -> u64 {
        self.node(number).ctl("cluster status")["id"].as_u64().expect("an id")
    }

    /// The number of the node that holds the floating addresses, once `asked` says so and it does.
    pub(crate) fn holder_by(&self, asked: usize, except: Option<usize>) -> usize {
        wait_for("one holder of the floating addresses", LONG, || {
            let status = self.node(asked).try_ctl("cluster status")?;
            let addresses = status["addresses"].as_array()?;
            let holders: Vec<u64> = addresses.iter().filter_map(|a| a["holder"].as_u64()).collect();
            let first = *holders.first()?;
            if holders.len() != 2 || first == 0 || holders.iter().any(|h| *h != first) {
                return None;
            }
            let number = number_of(&status, first)?;
            let held = Some(number) != except && self.has_addresses(number);
            held.then_some(number)
        })
    }

    pub(crate) fn holder(&self) -> usize {
        let asked = (1..=3).find(|n| self.nodes[n - 1].is_some()).expect("a node is left");
        self.holder_by(asked, None)
    }

    /// Who holds the addresses after `gone` lost them.
    pub(crate) fn survivor(&self, gone: usize) -> usize {
        let asked = (1..=3).find(|n| *n != gone && self.nodes[n - 1].is_some());
        self.holder_by(asked.expect("another node"), Some(gone))
    }

    /// A text with addresses of the picture, in the family of the plan.
    pub(crate) fn say(&self, text: &str) -> String {
        self.plan.say(text)
    }

    pub(crate) fn has_addresses(&self, number: usize) -> bool {
        let ns = self.ns(number);
        let out = Command::new("ip").args(["-n", &ns, "addr"]).output();
        let text = String::from_utf8_lossy(&out.expect("ip").stdout).into_owned();
        ["10.1.0.100/32", "10.2.0.100/32"].iter().all(|a| text.contains(&self.say(a)))
    }

    /// What a kubelet hears from a node: the status of `/readyz` or `/healthz`, and the reason.
    pub(crate) fn probe(&self, number: usize, path: &str) -> String {
        let mut stream = stream_in(&self.ns(number), "127.0.0.1:9090");
        stream.set_read_timeout(Some(LONG)).expect("timeout");
        let request = format!("GET {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("ask");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answer");
        text.trim_start_matches("HTTP/1.1 ").to_owned()
    }

    pub(crate) fn kill(&mut self, number: usize) {
        let mut node = self.nodes[number - 1].take().expect("the node runs");
        node.proc.signal(Signal::SIGKILL);
        node.proc.wait(LONG);
    }

    pub(crate) fn calls(&self, number: usize) -> u64 {
        self.node(number).try_ctl("status").and_then(|s| s["calls"].as_u64()).unwrap_or(0)
    }

    /// Waits until the nodes that run carry `count` calls together.
    pub(crate) fn wait_carried(&self, numbers: &[usize], count: u64) {
        wait_for("the calls to be carried on", LONG, || {
            let sum: u64 = numbers.iter().map(|n| self.calls(*n)).sum();
            (sum == count).then_some(())
        });
    }

    /// The kernel drops what passes `device` of the node, both ways.
    pub(crate) fn cut(&self, number: usize, device: &str) {
        nft(
            &self.ns(number),
            &format!(
                "table inet cut {{\n chain in {{\n type filter hook prerouting priority -400;\n \
                 iifname \"{device}\" drop\n }}\n chain out {{\n type filter hook output priority \
                 -400;\n oifname \"{device}\" drop\n }}\n }}"
            ),
        );
    }

    pub(crate) fn mend(&self, number: usize) {
        run("ip", &format!("netns exec {} nft delete table inet cut", self.ns(number)));
    }

    /// The switch's end of a node's link goes down: the node sees its carrier go.
    pub(crate) fn carrier(&self, number: usize, switch: &str, up: bool) {
        let state = if up { "up" } else { "down" };
        ip(&format!("-n {} link set to-n{number} {state}", self.net.ns(switch)));
    }

    fn image(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("disk{number}.img"))
    }

    fn mount(&self, number: usize) {
        let place = self.dir.path().join(format!("n{number}/raft"));
        std::fs::create_dir_all(&place).expect("data directory");
        let (image, place) = (self.image(number), place.display().to_string());
        run("mount", &format!("-o loop {} {place}", image.display()));
    }

    fn make_disk(&self, number: usize) {
        let image = self.image(number);
        let file = std::fs::File::create(&image).expect("image");
        file.set_len(96 << 20).expect("size");
        run("mkfs.ext4", &format!("-q -F {}", image.display()));
        self.mount(number);
    }

    /// Kills a node and brings its disk to the state of a machine that lost power: what the file
    /// system had given to the device by then, and nothing of what waited in the page cache.
    pub(crate) fn power_cut(&mut self, number: usize) {
        let image = self.image(number);
        let after = image.with_extension("cut");
        self.kill(number);
        run("cp", &format!("{} {}", image.display(), after.display()));
        let place = self.dir.path().join(format!("n{number}/raft"));
        run("umount", &place.display().to_string());
        std::fs::rename(&after, &image).expect("the disk after the cut");
        self.mount(number);
    }

    pub(crate) fn callee(&self, scenario: &str, args: &str) -> Sipp {
        let args = format!("{} -p 5060 {args}", self.say("-i 10.2.0.10 -mi 10.2.0.10"));
        let sipp = Sipp::start(&self.net.ns("in"), self.dir.path(), "callee", scenario, &args);
        self.wait_listening(5060);
        sipp
    }

    pub(crate) fn wait_listening(&self, port: u16) {
        sbc_tests::net::wait_listening(&self.net.ns("in"), port);
    }

    /// A caller of `to`: the floating address, or a node's own.
    pub(crate) fn caller(&self, to: &str, scenario: &str, args: &str) -> Sipp {
        let own = self.say("-i 10.1.0.10 -mi 10.1.0.10");
        let args = format!("{own} -p 5060 -s 1234 {args} {}", self.say(&format!("{to}:5060")));
        Sipp::start(&self.net.ns("out"), self.dir.path(), "caller", scenario, &args)
    }

    /// CDRs of answered calls over all nodes, those that died included: how many there are of each.
    pub(crate) fn answered_cdrs(&self) -> BTreeMap<String, usize> {
        self.cdrs_of(200)
    }

    /// As [`Three::answered_cdrs`], of calls that ended with a final status.
    pub(crate) fn cdrs_of(&self, status: u16) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for number in 1..=3 {
            let file = self.dir.path().join(format!("n{number}/cdr.jsonl"));
            let text = std::fs::read_to_string(file).unwrap_or_default();
            for line in text.lines() {
                // A line that the killed node had begun is no CDR.
                let Ok(cdr) = serde_json::from_str::<serde_json::Value>(line) else { continue };
                if cdr["status"] == status {
                    *found.entry(cdr["call"].to_string()).or_default() += 1;
                }
            }
        }
        found
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        self.nodes.clear();
        if self.plan.pods {
            for number in 1..=3 {
                let dir = PathBuf::from("/etc/netns").join(self.ns(number));
                drop(std::fs::remove_dir_all(dir));
            }
        }
        if self.plan.own_disks {
            for number in 1..=3 {
                let place = self.dir.path().join(format!("n{number}/raft"));
                // Not mounted when making it failed.
                drop(Command::new("umount").arg(place).output());
            }
        }
    }
}

fn number_of(status: &serde_json::Value, id: u64) -> Option<usize> {
    let nodes = status["nodes"].as_array()?;
    let name = nodes.iter().find(|n| n["id"] == id)?["name"].as_str()?;
    name.strip_prefix('n')?.parse().ok()
}

/// Calls that are up, with audio both ways.
pub(crate) struct Load {
    caller: Sipp,
    callee: Sipp,
    pub(crate) talk: Talk,
    pub(crate) count: u64,
    close: usize,
    /// CDRs of calls before these.
    before: usize,
    /// Calls without media beside them.
    bare: Option<(u64, Sipp, Sipp)>,
}

impl Load {
    /// `count` calls, set up at `rate` a second and held for `hold`; every node has them in its
    /// tables when this returns.
    pub(crate) fn start(three: &Three, count: u64, rate: u64, hold: Duration) -> Load {
        Load::start_as(three, "10.1.0.100", "audio", count, rate, hold)
    }

    /// Calls to a node's own address, to be re-INVITEd by the survivor; they end `hold` after that.
    pub(crate) fn start_own(
        three: &Three,
        node: usize,
        count: u64,
        rate: u64,
        hold: Duration,
    ) -> Load {
        Load::start_as(
            three,
            &format!("10.1.0.{}", three.host(node)),
            "reinvited",
            count,
            rate,
            hold,
        )
    }

    fn start_as(
        three: &Three,
        to: &str,
        scenario: &str,
        count: u64,
        rate: u64,
        hold: Duration,
    ) -> Load {
        let before = three.answered_cdrs().len();
        let common = format!("-m {count} -l {count} -trace_logs -log_file");
        for side in ["caller", "callee"] {
            drop(std::fs::remove_file(three.dir.path().join(format!("{side}.ports"))));
        }
        let callee = format!("{common} callee.ports");
        let callee = three.callee(&format!("uas-{scenario}.xml"), &callee);
        let hold = hold.as_millis();
        let caller = three.caller(
            to,
            &format!("uac-{scenario}.xml"),
            &format!("-r {rate} -d {hold} {common} caller.ports"),
        );
        wait_for("the calls to be up", LONG * 3, || {
            let sum: u64 =
                (1..=3).filter(|n| three.nodes[n - 1].is_some()).map(|n| three.calls(n)).sum();
            (sum == count).then_some(())
        });
        wait_for("every node to know the calls", LONG, || {
            let known =
                three.nodes.iter().flatten().all(|node| {
                    node.try_ctl("cluster status").is_some_and(|s| s["dialogs"] == count)
                });
            known.then_some(())
        });
        let end = |space: &str, address: &str, log: &str| End {
            ns: three.net.ns(space),
            address: three.say(address),
            log: three.dir.path().join(log),
        };
        let ends = [
            end("out", "10.1.0.10:40000", "caller.ports"),
            end("in", "10.2.0.10:40000", "callee.ports"),
        ];
        let close = usize::try_from(count).expect("a few").min(50);
        let talk = Talk::start(ends, close);
        let load = Load { caller, callee, talk, count, close, before, bare: None };
        wait_for("every call's ports to be known", LONG, || {
            load.talk.learn();
            (load.talk.calls() as u64 == count).then_some(())
        });
        load.wait_audio("audio on every call before anything happens");
        load
    }

    /// Adds `count` calls without media: dialogs that have to be carried on as well.
    pub(crate) fn add_bare(&mut self, three: &Three, count: u64, rate: u64, hold: Duration) {
        let dir = three.dir.path();
        let common = format!("-m {count} -l {count} -p 5061");
        let callee = three.say(&format!("-i 10.2.0.10 {common}"));
        let callee = Sipp::start(&three.net.ns("in"), dir, "bare-callee", "uas-bare.xml", &callee);
        three.wait_listening(5061);
        let caller =
            format!("-i 10.1.0.10 -s 8 -r {rate} -d {} {common} 10.1.0.100:5060", hold.as_millis());
        let caller = three.say(&caller);
        let caller = Sipp::start(&three.net.ns("out"), dir, "bare-caller", "uac-bare.xml", &caller);
        let wanted = self.count + count;
        wait_for("the calls without media to be up", LONG + hold, || {
            let known =
                three.nodes.iter().flatten().all(|node| {
                    node.try_ctl("cluster status").is_some_and(|s| s["dialogs"] == wanted)
                });
            known.then_some(())
        });
        self.bare = Some((count, caller, callee));
    }

    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.count + self.bare.as_ref().map_or(0, |(count, ..)| *count)
    }

    fn wait_audio(&self, what: &str) {
        self.talk.recount();
        wait_for(what, LONG, || {
            // A re-INVITE brings new ports.
            self.talk.learn();
            (self.talk.both_ways() as u64 == self.count).then_some(())
        });
    }

    /// To be called at the moment of the fault.
    pub(crate) fn mark(&self) {
        self.talk.mark();
    }

    /// Every call passes audio both ways again; how long the silence was.
    pub(crate) fn heard_again(&self) -> sbc_tests::rtp::Gaps {
        self.wait_audio("audio both ways on every call after the fault");
        self.talk.gaps(self.close)
    }

    /// All calls end by BYE, with one CDR each in the cluster, and nothing is left.
    pub(crate) fn end(self, three: &Three) {
        let wanted = self.before + usize::try_from(self.total()).expect("a few");
        self.caller.expect_success(LONG * 4);
        self.callee.expect_success(LONG);
        drop(self.talk);
        if let Some((_, caller, callee)) = self.bare {
            caller.expect_success(LONG * 4);
            callee.expect_success(LONG);
        }
        wait_for("one CDR per call", LONG, || {
            (three.answered_cdrs().len() >= wanted).then_some(())
        });
        wait_for("nothing to be left", LONG, || {
            let idle = three.nodes.iter().flatten().all(|node| {
                node.try_ctl("status").is_some_and(|s| s["calls"] == 0)
                    && node.try_ctl("cluster status").is_some_and(|s| s["dialogs"] == 0)
            });
            idle.then_some(())
        });
        let cdrs = three.answered_cdrs();
        assert_eq!(cdrs.len(), wanted, "one CDR per call in the whole cluster");
        let twice: Vec<_> = cdrs.iter().filter(|(_, n)| **n != 1).collect();
        assert!(twice.is_empty(), "calls with more than one CDR: {twice:?}");
    }
}

/// The time from now until an INVITE from outside is answered by who is called inside.
pub(crate) fn until_new_calls(three: &Three) -> Duration {
    let begin = Instant::now();
    let caller = socket_in(&three.net.ns("out"), &three.say("10.1.0.10:5099"));
    let callee = socket_in(&three.net.ns("in"), &three.say("10.2.0.10:5099"));
    for socket in [&caller, &callee] {
        socket.set_nonblocking(true).expect("nonblocking");
    }
    let mut buffer = [0; 4096];
    let mut number = 0;
    let mut next = begin;
    wait_for("a new call to be taken", LONG, || {
        if Instant::now() >= next {
            number += 1;
            next = Instant::now() + Duration::from_millis(40);
            // Nobody may have the address just now.
            let invite = three.say(&invite(number));
            drop(caller.send_to(invite.as_bytes(), three.say("10.1.0.100:5060")));
        }
        while let Ok((length, from)) = callee.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.starts_with("INVITE") {
                callee.send_to(busy(&text).as_bytes(), from).expect("answer");
            }
        }
        while let Ok((length, _)) = caller.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.starts_with("SIP/2.0 486") {
                return Some(begin.elapsed());
            }
        }
        None
    })
}

fn invite(number: u32) -> String {
    format!(
        "INVITE sip:9@10.1.0.100:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.0.10:5099;branch=z9hG4bKp{number}\r\n\
         From: <sip:probe@10.1.0.10>;tag=p{number}\r\nTo: <sip:9@10.1.0.100>\r\n\
         Call-ID: probe-{number}-{}\r\nCSeq: 1 INVITE\r\nContact: <sip:probe@10.1.0.10:5099>\r\n\
         Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
        std::process::id()
    )
}

/// 486 to a request, by copying what must be.
fn busy(request: &str) -> String {
    let mut answer = "SIP/2.0 486 Busy Here\r\n".to_owned();
    for line in request.lines() {
        let wanted = ["Via:", "From:", "To:", "Call-ID:", "CSeq:"];
        if wanted.iter().any(|name| line.starts_with(name)) {
            answer.push_str(line);
            if line.starts_with("To:") {
                answer.push_str(";tag=busy");
            }
            answer.push_str("\r\n");
        }
    }
    answer.push_str("Content-Length: 0\r\n\r\n");
    answer
}

/// How a pod finds the others; all say the same.
const JOIN_BY_KEY: &str =
    "join = { key-file = \"join.key\", begin = 3, dns = \"sbc-peers\", within = \"60s\" }";

/// A pod is known by its name, wherever it is.
fn podlike(number: usize, config: &str) -> String {
    config.replace("\nfailover =", &format!("\nadvertise = \"n{number}.sbc-peers\"\nfailover ="))
}

fn config(number: usize, host: u32, join: &str, failover: &str) -> String {
    let floats = failover == "address";
    let (outside, inside) = if floats {
        ("10.1.0.100".to_owned(), "10.2.0.100".to_owned())
    } else {
        (format!("10.1.0.{host}"), format!("10.2.0.{host}"))
    };
    let addresses = if floats {
        "[[cluster.address]]\naddress = \"10.1.0.100\"\ndevice = \"to-swo\"\n\n\
         [[cluster.address]]\naddress = \"10.2.0.100\"\ndevice = \"to-swi\"\n"
    } else {
        ""
    };
    format!(
        r#"
[node]
name = "n{number}"
drain-time = "2s"

[admin]
socket = "@DIR@/sbc.sock"

[metrics]
listen = "127.0.0.1:9090"

[cdr]
file = "@DIR@/cdr.jsonl"

[calls]
media-timeout = "30s"

[[interface]]
name = "access"
listen = ["udp://{outside}:5060", "tcp://{outside}:5060"]
media = {{ ports = "20000-29999" }}

[[interface]]
name = "core"
listen = ["udp://{inside}:5060", "tcp://{inside}:5060"]
media = {{ ports = "30000-39999" }}

[[trunk]]
name = "outside"
interface = "access"
peers = "10.1.0.10"

[[trunk]]
name = "inside"
interface = "core"
peers = "10.2.0.10"

[[trunk]]
name = "probed"
interface = "core"
peers = "10.2.0.10:5099"
sources = "10.2.0.10:5099"

[[route]]
source = "outside"
ruri = "9"
target = "probed"

[[trunk]]
name = "bare"
interface = "core"
peers = "10.2.0.10:5061"
sources = "10.2.0.10:5061"

[[route]]
source = "outside"
ruri = "8"
target = "bare"

[[route]]
source = "outside"
target = "inside"

[[route]]
source = "inside"
target = "outside"

[cluster]
data = "@DIR@/raft"
listen = "10.3.0.{host}:7000"
failover = "{failover}"
{join}

{addresses}
"#
    )
}
