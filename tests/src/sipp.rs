//! SIPp as caller and callee, driven by the scenarios in `tests/scenarios`.

use std::path::Path;
use std::time::Duration;

use crate::proc::Proc;
use crate::root;

/// A running SIPp.
pub struct Sipp {
    pub proc: Proc,
}

impl Sipp {
    /// Starts SIPp in `ns` with a scenario file of ours (`uas-answer.xml`), or a built-in one
    /// (`uac`), and further words.
    pub fn start(ns: &str, dir: &Path, name: &str, scenario: &str, args: &str) -> Sipp {
        let mut words: Vec<String> = if scenario.ends_with(".xml") {
            let file = root().join("tests/scenarios").join(scenario);
            vec!["-sf".into(), file.to_string_lossy().into_owned()]
        } else {
            vec!["-sn".into(), scenario.into()]
        };
        words.extend(args.split_whitespace().map(str::to_owned));
        words.extend(
            ["-nostdin", "-trace_err", "-error_file", &format!("{name}.err"), "-skip_rlimit"]
                .map(str::to_owned),
        );
        Sipp { proc: Proc::start(ns, dir, name, Path::new("sipp"), &words) }
    }

    /// Waits for the end, however it went.
    pub fn end(mut self, limit: Duration) -> std::process::ExitStatus {
        self.proc.wait(limit)
    }

    /// Waits for the end and asserts that every call went as the scenario says.
    pub fn expect_success(mut self, limit: Duration) {
        let status = self.proc.wait(limit);
        assert!(
            status.success(),
            "sipp ended with {status}; its errors:\n{}",
            std::fs::read_to_string(self.proc.log.with_extension("err")).unwrap_or_default()
        );
    }
}
