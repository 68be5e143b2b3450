//! Calls that ring while their node dies: each is answered, cancelled or refused after that.

use std::time::Duration;

use sbc_tests::sipp::Sipp;
use sbc_tests::wait_for;

use crate::three::{LONG, Three};

/// How calls that rang end: what their callee does, who they call, on which ports, with what status.
const KINDS: [(&str, &str, u16, u16, u16); 3] = [
    // Callers of the trunks that `three.rs` configures.
    ("answer", "1234", 5060, 5070, 200),
    ("busy", "8", 5061, 5071, 486),
    ("cancel", "9", 5099, 5072, 487),
];

/// Calls that ring, some of each kind.
pub(crate) struct Ringing {
    /// Of each kind.
    count: u64,
    running: Vec<(Sipp, Sipp)>,
}

impl Ringing {
    /// `count` calls of each kind that ring until `ring` is over; every node has them in its tables
    /// when this returns.
    pub(crate) fn start(three: &Three, count: u64, ring: Duration) -> Ringing {
        let dir = three.dir.path();
        let ring = ring.as_millis();
        let mut running = Vec::new();
        for (kind, number, port, from, _) in KINDS {
            // Who is cancelled rings as long as it takes.
            let callee = match kind {
                "cancel" => "uas-ring.xml".to_owned(),
                _ => format!("uas-ring-{kind}.xml"),
            };
            let args = format!("-i 10.2.0.10 -mi 10.2.0.10 -p {port} -d {ring} -m {count}");
            let name = format!("callee-{kind}");
            let callee = Sipp::start(&three.net.ns("in"), dir, &name, &callee, &args);
            three.wait_listening(port);
            let args = format!(
                "-i 10.1.0.10 -mi 10.1.0.10 -p {from} -s {number} -d {ring} -r 20 -m {count} \
                 10.1.0.100:5060"
            );
            let (name, scenario) = (format!("caller-{kind}"), format!("uac-ring-{kind}.xml"));
            let caller = Sipp::start(&three.net.ns("out"), dir, &name, &scenario, &args);
            running.push((caller, callee));
        }
        let ringing = Ringing { count, running };
        let owner = three.holder();
        wait_for("the calls to ring", LONG, || {
            let calls = three.node(owner).try_ctl("calls list")?;
            let rings = calls["calls"].as_array()?.iter().filter(|c| c["state"] == "ringing");
            (rings.count() as u64 == ringing.total()).then_some(())
        });
        wait_for("every node to know the ringing calls", LONG, || {
            let applied = |node: &sbc_tests::node::Node| {
                let status = node.try_ctl("cluster status")?;
                let dialogs = status["dialogs"].as_u64()?;
                Some((status["applied"].as_u64()?, dialogs >= ringing.total()))
            };
            let mut seen = three.nodes.iter().flatten().map(applied);
            let first = seen.next()??;
            (first.1 && seen.all(|next| next == Some(first))).then_some(())
        });
        ringing
    }

    /// Calls of all kinds.
    pub(crate) fn total(&self) -> u64 {
        self.count * KINDS.len() as u64
    }

    /// Every call ends as its peers mean it to, with one CDR each in the cluster, and nothing is left.
    pub(crate) fn end(self, three: &Three) {
        let count = usize::try_from(self.count).expect("a few");
        for (caller, callee) in self.running {
            caller.expect_success(LONG);
            callee.expect_success(LONG);
        }
        for (kind, .., status) in KINDS {
            wait_for(&format!("one CDR for each call of kind {kind}"), LONG, || {
                (three.cdrs_of(status).len() >= count).then_some(())
            });
        }
        wait_for("nothing to be left", LONG, || {
            let idle = three.nodes.iter().flatten().all(|node| {
                node.try_ctl("status").is_some_and(|s| s["calls"] == 0)
                    && node.try_ctl("cluster status").is_some_and(|s| s["dialogs"] == 0)
            });
            idle.then_some(())
        });
        for (kind, .., status) in KINDS {
            let cdrs = three.cdrs_of(status);
            assert_eq!(cdrs.len(), count, "one CDR for each call of kind {kind}");
            let twice: Vec<_> = cdrs.iter().filter(|(_, n)| **n != 1).collect();
            assert!(twice.is_empty(), "calls with more than one CDR: {twice:?}");
        }
    }
}
