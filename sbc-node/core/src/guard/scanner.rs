//! Scanner fingerprints: patterns over User-Agent, From, To and Call-ID from a data file.
//!
//! `scanners.txt` beside this file is what every node knows; operators add files of the same form.
//! What happens to a scanner is decided in `mod.rs`.

use regex::bytes::{RegexSet, RegexSetBuilder};

/// Fingerprints that are always there.
pub const BUILT_IN: &str = include_str!("scanners.txt");

/// The texts of a request that patterns look at; empty where the header is missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fingerprint<'a> {
    pub user_agent: &'a [u8],
    pub from_user: &'a [u8],
    pub to_user: &'a [u8],
    pub call_id: &'a [u8],
}

/// One wrong line of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ScannerError {
    pub line: usize,
    pub reason: String,
}

/// Compiled patterns, one automaton per field.
#[derive(Clone, Debug)]
pub struct Scanners {
    user_agent: RegexSet,
    from: RegexSet,
    to: RegexSet,
    call_id: RegexSet,
}

/// Automata may not take more than this; a file that needs more is refused.
const SIZE_LIMIT: usize = 8 << 20;

impl Scanners {
    /// Reads lines `FIELD REGEX`; empty lines and those that begin with `;` are passed over.
    pub fn parse(text: &str) -> Result<Scanners, Vec<ScannerError>> {
        let mut sets: [Vec<&str>; 4] = Default::default();
        let mut errors = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(';') {
                continue;
            }
            if let Err(reason) = sort_in(line, &mut sets) {
                errors.push(ScannerError { line: index + 1, reason });
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let [user_agent, from, to, call_id] = sets;
        let set = |patterns: Vec<&str>| {
            builder(&patterns)
                .build()
                .map_err(|e| vec![ScannerError { line: 0, reason: e.to_string() }])
        };
        Ok(Scanners {
            user_agent: set(user_agent)?,
            from: set(from)?,
            to: set(to)?,
            call_id: set(call_id)?,
        })
    }

    /// Whether any pattern fits.
    pub fn matches(&self, request: &Fingerprint<'_>) -> bool {
        self.user_agent.is_match(request.user_agent)
            || self.from.is_match(request.from_user)
            || self.call_id.is_match(request.call_id)
            || self.to.is_match(request.to_user)
    }
}

fn sort_in<'a>(line: &'a str, sets: &mut [Vec<&'a str>; 4]) -> Result<(), String> {
    let (field, pattern) =
        line.split_once(char::is_whitespace).ok_or("want FIELD REGEX".to_owned())?;
    let pattern = pattern.trim();
    builder(&[pattern]).build().map_err(|e| {
        let text = e.to_string();
        text.lines().last().unwrap_or("").trim_start_matches("error: ").to_owned()
    })?;
    let [user_agent, from, to, call_id] = sets;
    match field {
        "user-agent" => user_agent.push(pattern),
        "from" => from.push(pattern),
        "to" => to.push(pattern),
        "call-id" => call_id.push(pattern),
        other => {
            return Err(format!("\"{other}\" is none of user-agent, from, to, call-id"));
        }
    }
    Ok(())
}

fn builder(patterns: &[&str]) -> RegexSetBuilder {
    let mut builder = RegexSetBuilder::new(patterns);
    builder.case_insensitive(true).unicode(false).size_limit(SIZE_LIMIT);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_patterns_know_scanners_and_let_phones_pass() {
        let s = Scanners::parse(BUILT_IN).unwrap();
        let agent = |a: &'static str| {
            s.matches(&Fingerprint { user_agent: a.as_bytes(), ..Fingerprint::default() })
        };
        for scanner in ["friendly-scanner", "SIPVicious 0.3", "sipcli/v1.8", "VaxSIPUserAgent/3.1"]
        {
            assert!(agent(scanner), "{scanner}");
        }
        for phone in ["", "Yealink SIP-T46S 66.84.0.15", "Asterisk PBX 18", "baresip v3", "sbc"] {
            assert!(!agent(phone), "{phone}");
        }
        let from =
            |f: &'static [u8]| s.matches(&Fingerprint { from_user: f, ..Fingerprint::default() });
        assert!(from(b"sipvicious"));
        assert!(from(b"a' or 'a'='a"));
        assert!(!from(b"O'Orwell\xff"));
    }

    #[test]
    fn wrong_lines_are_told() {
        let errors = Scanners::parse("user-agent x\nfrom (\nvia x\nuser-agent\n").unwrap_err();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "line 2: unclosed group",
                "line 3: \"via\" is none of user-agent, from, to, call-id",
                "line 4: want FIELD REGEX",
            ]
        );
    }
}
