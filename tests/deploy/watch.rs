//! What watches and what is advised: alerts with their runbook, their metrics and Prometheus's own opinion
//! of them, the sysctls and the firewall of the documents.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use sbc_tests::net::{Net, nft};
use sbc_tests::{can_make_namespaces, root, skip_tool};

use super::{have, run};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let metric = |w: &&str| *w == "up" || w.starts_with("sbc_") || w.starts_with("process_");
    text.split(|c| !word(c)).filter(metric).map(str::to_owned).collect()
}

/// Each alert with the text of its rule.
fn rules(alerts: &str) -> Vec<(&str, &str)> {
    let rules = alerts.split("- alert: ").skip(1);
    rules.filter_map(|rule| rule.split_once('\n')).map(|(name, rule)| (name.trim(), rule)).collect()
}

/// An alert without an explanation helps nobody; one of a metric that does not exist never comes.
#[test]
fn every_alert_has_its_entry_and_its_metrics() {
    let (alerts, runbook) = (read("helm/sbc/files/alerts.yaml"), read("docs/runbook.md"));
    let metrics = read("docs/metrics.md");
    let rules = rules(&alerts);
    assert!(rules.len() > 10);
    for (alert, rule) in &rules {
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert} is not in docs/runbook.md");
        let link = format!("docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(format!("{rule}\n").contains(&link), "{alert} does not say where its entry is");
        let asked = rule.split("labels:").next().map(named).expect("an expression");
        let row = metrics.lines().find(|l| l.starts_with(&format!("| `{alert}` |")));
        let row = row.unwrap_or_else(|| panic!("{alert} is not in docs/metrics.md"));
        assert_eq!(named(row), asked, "{alert}: its metrics in docs/metrics.md");
    }
    for section in runbook.lines().filter_map(|l| l.strip_prefix("## Sbc")) {
        let alert = format!("Sbc{section}");
        assert!(rules.iter().any(|(name, _)| *name == alert), "no alert {alert}");
    }
    for text in [&alerts, &runbook, &read("helm/sbc/files/dashboard.json")] {
        for metric in named(text).iter().filter(|m| *m != "up") {
            let plain = metric.trim_end_matches("_bucket");
            assert!(
                metrics.contains(&format!("| `{plain}` |")),
                "{plain} is not in docs/metrics.md"
            );
        }
    }
}

/// Prometheus itself reads the rules, and fires every one where all is wrong and none where all is well.
#[test]
fn prometheus_fires_the_alerts_when_it_should() {
    if !have("promtool") {
        return skip_tool("alerts", "no promtool here: make deps installs it with prometheus");
    }
    let path = |file: &str| root().join(file);
    run(Command::new("promtool").args(["check", "rules"]).arg(path("helm/sbc/files/alerts.yaml")));
    let cases = "tests/deploy/alerts_test.yaml";
    run(Command::new("promtool").args(["test", "rules"]).arg(path(cases)));
    let (alerts, cases) = (read("helm/sbc/files/alerts.yaml"), read(cases));
    for (alert, _) in rules(&alerts) {
        assert!(cases.contains(&format!("alertname=\"{alert}\"")), "{alert} is tried by no case");
    }
}

/// The sysctls are of this kernel, and the firewall of the documents is one that nftables loads.
#[test]
fn the_advised_sysctls_and_firewall_are_taken_by_the_kernel() {
    for line in read("deploy/systemd/60-sbc.conf").lines().filter(|l| !l.starts_with('#')) {
        let (key, value) = line.split_once(" = ").expect("key = value");
        let file = format!("/proc/sys/{}", key.replace('.', "/"));
        assert!(std::path::Path::new(&file).exists(), "{key} is no sysctl");
        let numbers = value.split(' ').all(|n| n.parse::<u32>().is_ok());
        assert!(numbers, "{key}: {value}");
    }
    if !can_make_namespaces("firewall of the documents") {
        return;
    }
    let text = read("docs/deploy.md");
    let table = text.find("table inet sbc_notrack").expect("the example");
    let table = text[table..].split("```").next().expect("its end");
    let net = Net::new(&["n"]);
    nft(&net.ns("n"), table);
    let loaded = Command::new("ip")
        .args(["netns", "exec", &net.ns("n"), "nft", "list", "ruleset"])
        .stderr(Stdio::inherit())
        .output()
        .expect("nft");
    let loaded = String::from_utf8_lossy(&loaded.stdout).into_owned();
    assert_eq!(loaded.matches("notrack\n").count(), 2, "{loaded}");
}
