//! The live ladder of a call: caller on the left, the SBC in the middle, callee on the right.
//!
//! ```text
//! 12:00:00.123  A 192.0.2.1:5060      ── INVITE (SDP) ──────────▶ SBC
//! 12:00:00.125                                                    SBC ── INVITE (SDP) ──▶ B 10.0.0.2:5060
//! ```

use sbc_proto::admin::v1 as pb;

use crate::telemetry::time::Utc;

/// Width of one side: address, arrow with its label.
const ARROW: usize = 34;
const PEER: usize = 24;

/// One event as a line; `full` adds the message below it.
pub(super) fn line(event: &pb::TraceEvent, full: bool) -> String {
    let clock = Utc(event.at_ms).to_string();
    let clock = clock.get(11..23).unwrap_or(&clock).to_owned();
    if !event.note.is_empty() {
        return format!("{clock}  {} -- {}", event.call, event.note);
    }
    // On the left side an inbound message goes right, on the right side it goes left.
    let rightwards = (event.side == "A") == event.inbound;
    let arrow = arrow(&event.summary, rightwards);
    let peer = format!("{} {}", event.side, event.remote);
    let mut text = if event.side == "A" {
        format!("{clock}  {peer:<PEER$} {arrow} SBC")
    } else {
        format!("{clock}  {:<PEER$} {:ARROW$} SBC {arrow} {peer}", "", "")
    };
    if full {
        for row in String::from_utf8_lossy(&event.message).lines() {
            text.push_str("\n    ");
            // What a peer sent must not steer the terminal.
            text.extend(row.chars().map(|c| if c.is_control() { '.' } else { c }));
        }
    }
    text
}

fn arrow(label: &str, rightwards: bool) -> String {
    let label: String =
        label.chars().map(|c| if c.is_control() { '.' } else { c }).take(ARROW - 6).collect();
    let dashes = "─".repeat(ARROW.saturating_sub(label.chars().count() + 5));
    if rightwards {
        format!("── {label} {dashes}▶")
    } else {
        format!("◀─ {label} {dashes}─")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(side: &str, inbound: bool, summary: &str) -> pb::TraceEvent {
        pb::TraceEvent {
            at_ms: 43_200_123,
            side: side.to_owned(),
            inbound,
            remote: "192.0.2.1:5060".to_owned(),
            summary: summary.to_owned(),
            ..pb::TraceEvent::default()
        }
    }

    #[test]
    fn arrows_point_the_way_the_message_went_and_columns_line_up() {
        let lines = [
            line(&event("A", true, "INVITE (SDP)"), false),
            line(&event("B", false, "INVITE (SDP)"), false),
            line(&event("B", true, "180 Ringing (INVITE)"), false),
            line(&event("A", false, "180 Ringing (INVITE)"), false),
        ];
        let expected = [
            "12:00:00.123  A 192.0.2.1:5060         ── INVITE (SDP) ─────────────────▶ SBC",
            "12:00:00.123                                                              SBC ── INVITE (SDP) ─────────────────▶ B 192.0.2.1:5060",
            "12:00:00.123                                                              SBC ◀─ 180 Ringing (INVITE) ────────── B 192.0.2.1:5060",
            "12:00:00.123  A 192.0.2.1:5060         ◀─ 180 Ringing (INVITE) ────────── SBC",
        ];
        let columns: Vec<usize> =
            lines.iter().filter_map(|l| Some(l[..l.find("SBC")?].chars().count())).collect();
        assert!(columns.windows(2).all(|w| w[0] == w[1]), "{columns:?}\n{}", lines.join("\n"));
        assert_eq!(lines, expected);
    }

    #[test]
    fn control_characters_of_a_peer_never_reach_the_terminal() {
        let mut hostile = event("A", true, "INVITE \u{1b}[2J");
        hostile.message = bytes::Bytes::from_static(b"X: \x1b]0;owned\x07\r\n");
        assert!(!line(&hostile, true).chars().any(|c| c.is_control() && c != '\n'));
    }
}
