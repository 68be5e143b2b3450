//! Lists of bans: files with one network a line, as operators keep and feeds deliver them.
//!
//! ```text
//! # comments by #, ; or //
//! 192.0.2.0/24
//! 2001:db8::/32   ; what follows the network is passed over
//! ```

use std::time::Instant;

use sbc_core::cidr::Cidr;
use sbc_core::guard::{Ban, BanReason, Guard};

/// Networks in one list at most.
pub const LINES_MAX: usize = 1_000_000;

/// A wrong line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ListError {
    pub line: usize,
    pub reason: String,
}

/// What became of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub added: u64,
    /// Networks that were not taken, and why.
    pub refused: Vec<(Cidr, String)>,
}

/// Reads a list; every wrong line is told, and none is taken when one is wrong.
pub fn parse(text: &str) -> Result<Vec<Cidr>, Vec<ListError>> {
    let (mut nets, mut errors) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let net = line.split(['#', ';', ',']).next().unwrap_or("");
        let net = net.split("//").next().unwrap_or("").trim();
        let Some(net) = net.split_whitespace().next() else { continue };
        match net.parse::<Cidr>() {
            Ok(net) => nets.push(net),
            Err(error) => {
                errors.push(ListError { line: index + 1, reason: format!("{net}: {error}") });
            }
        }
        if nets.len() > LINES_MAX || errors.len() > 100 {
            errors.push(ListError { line: index + 1, reason: "too many lines".to_owned() });
            break;
        }
    }
    nets.sort();
    nets.dedup();
    if errors.is_empty() { Ok(nets) } else { Err(errors) }
}

/// Bans the networks of a list. `own`: this node's alone, not proposed to the cluster.
pub fn apply(guard: &Guard, nets: &[Cidr], by: &str, until: Option<Instant>, own: bool) -> Outcome {
    let mut outcome = Outcome::default();
    for net in nets {
        let ban = Ban { net: *net, reason: BanReason::Manual, by: by.into(), until, shared: own };
        match guard.ban(ban) {
            Ok(()) => outcome.added += 1,
            Err(error) => outcome.refused.push((*net, error.to_string())),
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_whole_or_every_wrong_line_is_told() {
        let nets = parse("# feed\n192.0.2.0/24 ; SBL1\n\n2001:db8::/32,x\n192.0.2.0/24\n").unwrap();
        let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.0/24", "2001:db8::/32"]);
        let errors = parse("192.0.2.1/24\nhost.example\n10.0.0.1\n").unwrap_err();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "line 1: 192.0.2.1/24: host bits are set: write 192.0.2.0/24",
                "line 2: host.example: not an IP address",
            ]
        );
    }
}
