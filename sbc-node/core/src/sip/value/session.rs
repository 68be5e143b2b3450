//! Values that sessions and subscriptions carry: Session-Expires, Replaces, Reason, Event, …

use std::borrow::Cow;

use super::{FromValue, ValueError};
use crate::sip::scan::{Params, find_outside, is_token, number, number_u32, quote, trim, unquote};
use crate::sip::write::{Out, WriteValue};

/// Splits `value *(;params)`; the value trimmed and not empty.
fn with_params(text: &str) -> Result<(&str, Params<'_>), ValueError> {
    let (value, params) =
        text.split_at_checked(find_outside(text, b';', b';', true)).ok_or(ValueError::Syntax)?;
    let value = trim(value);
    if value.is_empty() { Err(ValueError::Syntax) } else { Ok((value, Params(params))) }
}

fn token_with_params(text: &str) -> Result<(&str, Params<'_>), ValueError> {
    with_params(text)
        .and_then(|(v, p)| if is_token(v) { Ok((v, p)) } else { Err(ValueError::Syntax) })
}

/// Who refreshes a session (RFC 4028 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refresher {
    Uac,
    Uas,
}

/// Session-Expires (RFC 4028 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionExpires {
    pub interval_s: u32,
    pub refresher: Option<Refresher>,
}

impl<'a> FromValue<'a> for SessionExpires {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (interval, params) = with_params(text)?;
        let refresher = match params.get("refresher") {
            Some(who) if who.eq_ignore_ascii_case("uac") => Some(Refresher::Uac),
            Some(who) if who.eq_ignore_ascii_case("uas") => Some(Refresher::Uas),
            Some(_) => return Err(ValueError::Syntax),
            None => None,
        };
        let interval_s = number_u32(interval).ok_or(ValueError::Number)?;
        Ok(SessionExpires { interval_s, refresher })
    }
}

impl WriteValue for SessionExpires {
    fn write_value(&self, out: &mut Out<'_>) {
        out.int(u64::from(self.interval_s));
        match self.refresher {
            Some(Refresher::Uac) => out.str(";refresher=uac"),
            Some(Refresher::Uas) => out.str(";refresher=uas"),
            None => {}
        }
    }
}

/// Min-SE (RFC 4028 §5); parameters are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinSe(pub u32);

impl<'a> FromValue<'a> for MinSe {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        number_u32(with_params(text)?.0).map(MinSe).ok_or(ValueError::Number)
    }
}

/// A dialog named by another message: Replaces (RFC 3891), Join (RFC 3911), Target-Dialog
/// (RFC 4538, with `local-tag` and `remote-tag`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialogRef<'a> {
    pub call_id: &'a str,
    /// The tag of the receiver's side.
    pub to_tag: &'a str,
    pub from_tag: &'a str,
    pub early_only: bool,
}

impl<'a> FromValue<'a> for DialogRef<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (call_id, params) = with_params(text)?;
        let tag =
            |a: &str, b: &str| params.get(a).or_else(|| params.get(b)).filter(|t| is_token(t));
        let to_tag = tag("to-tag", "local-tag").ok_or(ValueError::Syntax)?;
        let from_tag = tag("from-tag", "remote-tag").ok_or(ValueError::Syntax)?;
        if call_id.bytes().any(|b| b <= b' ') {
            return Err(ValueError::Syntax);
        }
        Ok(DialogRef { call_id, to_tag, from_tag, early_only: params.has("early-only") })
    }
}

impl WriteValue for DialogRef<'_> {
    /// As Replaces and Join have it.
    fn write_value(&self, out: &mut Out<'_>) {
        (self.call_id, ";to-tag=", self.to_tag, ";from-tag=", self.from_tag).write_value(out);
        if self.early_only {
            out.str(";early-only");
        }
    }
}

/// One Reason (RFC 3326).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason<'a> {
    /// `SIP`, `Q.850`, …
    pub protocol: &'a str,
    pub cause: Option<u16>,
    /// As written, quotes and all.
    pub text_raw: Option<&'a str>,
}

impl<'a> Reason<'a> {
    pub fn text(&self) -> Cow<'a, str> {
        self.text_raw.map_or(Cow::Borrowed(""), unquote)
    }
}

impl<'a> FromValue<'a> for Reason<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (protocol, params) = token_with_params(text)?;
        let cause = params.get("cause").and_then(number).and_then(|n| u16::try_from(n).ok());
        Ok(Reason { protocol, cause, text_raw: params.get("text") })
    }
}

impl WriteValue for Reason<'_> {
    /// The text is quoted anew, so that nothing in it can add a parameter.
    fn write_value(&self, out: &mut Out<'_>) {
        out.str(self.protocol);
        if let Some(cause) = self.cause {
            (";cause=", cause).write_value(out);
        }
        if self.text_raw.is_some() {
            (";text=", quote(&self.text())).write_value(out);
        }
    }
}

/// One Warning (RFC 3261 §20.43).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning<'a> {
    pub code: u16,
    /// The host that warns: a fact of its side.
    pub agent: &'a str,
    pub text_raw: &'a str,
}

impl<'a> Warning<'a> {
    pub fn text(&self) -> Cow<'a, str> {
        unquote(self.text_raw)
    }
}

impl<'a> FromValue<'a> for Warning<'a> {
    fn from_value(value: &'a str) -> Result<Self, ValueError> {
        let (code, rest) = value.split_once(' ').ok_or(ValueError::Syntax)?;
        let (agent, text_raw) = trim(rest).split_once(' ').ok_or(ValueError::Syntax)?;
        let code = number(code).filter(|c| (100..=999).contains(c)).ok_or(ValueError::Number)?;
        let text_raw = trim(text_raw);
        if text_raw.len() < 2 || !text_raw.starts_with('"') || !text_raw.ends_with('"') {
            return Err(ValueError::Unclosed);
        }
        let code = u16::try_from(code).map_err(|_| ValueError::Number)?;
        Ok(Warning { code, agent, text_raw })
    }
}

impl WriteValue for Warning<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        (self.code, " ", self.agent, " ", quote(&self.text())).write_value(out);
    }
}

/// Retry-After (RFC 3261 §20.33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryAfter {
    pub delay_s: u32,
    pub duration_s: Option<u32>,
}

impl<'a> FromValue<'a> for RetryAfter {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let digits = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
        let (delay, rest) = text.split_at_checked(digits).ok_or(ValueError::Syntax)?;
        let delay_s = number_u32(delay).ok_or(ValueError::Number)?;
        // A comment may stand between.
        let params = Params(rest.get(rest.rfind(')').map_or(0, |at| at + 1)..).unwrap_or(""));
        let duration_s = params.get("duration").and_then(number_u32);
        Ok(RetryAfter { delay_s, duration_s })
    }
}

/// Event (RFC 6665 §8.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    pub package: &'a str,
    pub params: Params<'a>,
}

impl<'a> Event<'a> {
    pub fn id(&self) -> Option<&'a str> {
        self.params.get("id")
    }
}

impl<'a> FromValue<'a> for Event<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (package, params) = token_with_params(text)?;
        Ok(Event { package, params })
    }
}

/// Subscription-State (RFC 6665 §8.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionState<'a> {
    /// `active`, `pending`, `terminated`, or an extension.
    pub state: &'a str,
    pub expires_s: Option<u32>,
    pub reason: Option<&'a str>,
    pub retry_after_s: Option<u32>,
}

impl SubscriptionState<'_> {
    pub fn is_terminated(&self) -> bool {
        self.state.eq_ignore_ascii_case("terminated")
    }
}

impl<'a> FromValue<'a> for SubscriptionState<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (state, params) = token_with_params(text)?;
        let seconds = |name| params.get(name).and_then(number_u32);
        Ok(SubscriptionState {
            state,
            expires_s: seconds("expires"),
            reason: params.get("reason"),
            retry_after_s: seconds("retry-after"),
        })
    }
}

/// Privacy (RFC 3323 §4.2, RFC 3325 §9.3, RFC 7044 §10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privacy<'a>(pub &'a str);

impl<'a> Privacy<'a> {
    /// The values, in order: `id`, `header`, `session`, `user`, `history`, `none`, `critical`.
    pub fn values(self) -> impl Iterator<Item = &'a str> {
        // Separated by `;`, by some peers with `,`.
        self.0.split([';', ',']).map(trim).filter(|v| !v.is_empty())
    }

    pub fn has(self, value: &str) -> bool {
        self.values().any(|v| v.eq_ignore_ascii_case(value))
    }
}

impl<'a> FromValue<'a> for Privacy<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let privacy = Privacy(text);
        let mut values = privacy.values().peekable();
        if values.peek().is_some() && values.all(is_token) {
            Ok(privacy)
        } else {
            Err(ValueError::Syntax)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sip::write::Builder;
    use crate::sip::{HeaderName, Method};

    fn written(value: impl WriteValue) -> String {
        let mut b = Builder::request(&Method::Bye, "sip:x");
        b.header(HeaderName::Subject, value);
        let text = String::from_utf8(b.finish().to_vec()).expect("text");
        text.split("Subject: ")
            .nth(1)
            .and_then(|t| t.split("\r\n").next())
            .expect("value")
            .to_owned()
    }

    #[test]
    fn rfc4028_session_expires() {
        for (text, expected) in [
            ("1800", Ok((1800, None))),
            ("90 ; Refresher = UAS", Ok((90, Some(Refresher::Uas)))),
            ("90;refresher=uac;x=y", Ok((90, Some(Refresher::Uac)))),
            ("90;refresher=proxy", Err(ValueError::Syntax)),
            ("-90", Err(ValueError::Number)),
            ("99999999999", Err(ValueError::Number)),
            ("", Err(ValueError::Syntax)),
        ] {
            let parsed = SessionExpires::from_value(text);
            assert_eq!(parsed.map(|s| (s.interval_s, s.refresher)), expected, "{text}");
        }
        let value = SessionExpires { interval_s: 1800, refresher: Some(Refresher::Uac) };
        assert_eq!(written(value), "1800;refresher=uac");
        assert_eq!(MinSe::from_value("90;x"), Ok(MinSe(90)));
    }

    #[test]
    fn rfc3891_replaces() {
        let text = "425928@bobster.example.org;to-tag=7743;from-tag=6472;early-only";
        let value = DialogRef::from_value(text).expect("replaces");
        assert_eq!(
            (value.call_id, value.to_tag, value.from_tag),
            ("425928@bobster.example.org", "7743", "6472")
        );
        assert_eq!(written(value), text);
        for text in [
            "a;to-tag=1",
            "a;from-tag=1",
            ";to-tag=1;from-tag=2",
            "a b;to-tag=1;from-tag=2",
            "a;to-tag=\"x\";from-tag=2",
        ] {
            assert!(DialogRef::from_value(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rfc3326_reason() {
        let value =
            Reason::from_value("Q.850 ;cause=16 ;text=\"Term; \\\"x\\\"\"").expect("reason");
        assert_eq!(
            (value.protocol, value.cause, &*value.text()),
            ("Q.850", Some(16), "Term; \"x\"")
        );
        assert_eq!(written(value), "Q.850;cause=16;text=\"Term; \\\"x\\\"\"");
        assert_eq!(Reason::from_value("SIP;cause=99999").map(|r| r.cause), Ok(None));
        assert!(Reason::from_value(";cause=1").is_err());
    }

    #[test]
    fn rfc3261_20_43_warning_and_20_33_retry_after() {
        let value = Warning::from_value("307 isi.edu \"Session parameter 'foo' not understood\"")
            .expect("warning");
        assert_eq!((value.code, value.agent), (307, "isi.edu"));
        assert_eq!(written(value), "307 isi.edu \"Session parameter 'foo' not understood\"");
        assert!(Warning::from_value("1812 overture \"In Progress\"").is_err());
        assert!(Warning::from_value("307 isi.edu \"open").is_err());
        for (text, delay, duration) in [
            ("18000;duration=3600", 18000, Some(3600)),
            ("120 (I'm in a meeting; really)", 120, None),
        ] {
            assert_eq!(
                RetryAfter::from_value(text),
                Ok(RetryAfter { delay_s: delay, duration_s: duration })
            );
        }
        assert!(RetryAfter::from_value("soon").is_err());
    }

    #[test]
    fn rfc6665_event_and_subscription_state() {
        let event = Event::from_value("refer;id=93809824").expect("event");
        assert_eq!((event.package, event.id()), ("refer", Some("93809824")));
        let state = SubscriptionState::from_value("terminated;reason=noresource;retry-after=5")
            .expect("state");
        assert!(state.is_terminated());
        assert_eq!(
            (state.reason, state.retry_after_s, state.expires_s),
            (Some("noresource"), Some(5), None)
        );
        assert!(Event::from_value("").is_err());
    }

    #[test]
    fn rfc3323_privacy() {
        let privacy = Privacy::from_value("header; User;id").expect("privacy");
        assert!(privacy.has("user") && privacy.has("id") && !privacy.has("none"));
        assert!(Privacy::from_value(";").is_err());
    }
}
