//! Number translation: user parts of R-URI, From, To and P-Asserted-Identity.
//!
//! Rules are regular expressions with captures (`$1`, `${name}`); per field the first rule that
//! matches is applied, once. Hosts and parameters never change here.

use regex::Regex;

/// The fields that a translation touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    RequestUri,
    From,
    To,
    Pai,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Translation {
    /// Which fields; empty means all four.
    pub fields: Vec<Field>,
    pub pattern: Regex,
    /// `$1` or `${1}` is the first capture; `$$` is a dollar sign.
    pub replace: Box<str>,
}

/// The user parts of a request on their way through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub ruri: String,
    pub from: String,
    pub to: String,
    pub pai: Option<String>,
}

impl Numbers {
    /// Applies the rules of one trunk in one direction.
    pub(super) fn translate(&mut self, rules: &[Translation]) {
        apply(rules, Field::RequestUri, &mut self.ruri);
        apply(rules, Field::From, &mut self.from);
        apply(rules, Field::To, &mut self.to);
        if let Some(pai) = &mut self.pai {
            apply(rules, Field::Pai, pai);
        }
    }

    /// Strips leading characters of the R-URI user and puts a prefix before it. The To user
    /// follows where it was the same number.
    pub(super) fn strip_and_prefix(&mut self, strip: usize, prefix: &str) {
        if strip == 0 && prefix.is_empty() {
            return;
        }
        let same = self.to == self.ruri;
        let rest = self.ruri.char_indices().nth(strip).map_or("", |(at, _)| &self.ruri[at..]);
        self.ruri = format!("{prefix}{rest}");
        if same {
            self.to.clone_from(&self.ruri);
        }
    }
}

fn apply(rules: &[Translation], field: Field, user: &mut String) {
    let rule = rules
        .iter()
        .find(|r| (r.fields.is_empty() || r.fields.contains(&field)) && r.pattern.is_match(user));
    if let Some(rule) = rule {
        *user = rule.pattern.replace(user, &*rule.replace).into_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(fields: &[Field], pattern: &str, replace: &str) -> Translation {
        Translation {
            fields: fields.to_vec(),
            pattern: Regex::new(pattern).unwrap(),
            replace: replace.into(),
        }
    }

    #[test]
    fn the_first_matching_rule_of_a_field_is_applied_once() {
        let rules = [
            rule(&[Field::RequestUri, Field::To], r"^00(\d+)$", "+$1"),
            rule(&[Field::RequestUri], r"^\+", "x"),
            rule(&[], r"^0(\d+)$", "+49${1}"),
        ];
        let mut n = Numbers {
            ruri: "0033123".into(),
            from: "030123".into(),
            to: "030456".into(),
            pai: Some("0089".into()),
        };
        n.translate(&rules);
        assert_eq!(n.ruri, "+33123");
        assert_eq!(n.from, "+4930123");
        assert_eq!(n.to, "+4930456");
        assert_eq!(n.pai.as_deref(), Some("+49089"));
    }

    #[test]
    fn strip_and_prefix_carry_the_to_user_along() {
        let mut n = Numbers { ruri: "99123".into(), to: "99123".into(), ..Numbers::default() };
        n.strip_and_prefix(2, "+1");
        assert_eq!((n.ruri.as_str(), n.to.as_str()), ("+1123", "+1123"));
        n.to = "other".into();
        n.strip_and_prefix(99, "");
        assert_eq!((n.ruri.as_str(), n.to.as_str()), ("", "other"));
    }
}
