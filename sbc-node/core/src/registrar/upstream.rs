//! What a core registrar holds of a phone that registers through us: kept with its binding, shared
//! with it by all nodes.
//!
//! When the core is asked, and what its answers mean, is `core/cache.rs`.

use std::sync::Arc;
use std::time::Instant;

use super::aor::join;
use super::binding::{Binding, contact_key};
use super::gruu::Device;
use super::register::{self, Answer};
use super::{Access, Registrar};
use crate::net::Flow;
use crate::sip::{Message, UriRef, escape_user};

/// What the core sees of the phones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamMode {
    /// Every REGISTER goes there, with the phone's own times.
    Mirror,
    /// One registration per contact, refreshed seldom.
    #[default]
    Contact,
    /// One per user, whatever contacts there are.
    Aor,
}

/// Domains whose registrar stands behind us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamPolicy {
    /// In lower case; empty for all that are served.
    pub domains: Vec<Box<str>>,
    /// The trunk whose peers are the registrars.
    pub trunk: Arc<str>,
    pub mode: UpstreamMode,
    /// Seconds that the core is asked for.
    pub expires_s: u32,
}

/// What the core holds of a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// URI of our Contact there.
    pub contact: Box<str>,
    pub call_id: Box<str>,
    /// Of the last request.
    pub cseq: u32,
    /// Unix milliseconds.
    pub until_ms: u64,
}

impl Upstream {
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Upstream>() + self.contact.len() + self.call_id.len()
    }
}

/// A contact that a REGISTER names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub contact: Box<str>,
    /// Names the device in our Contact at the core.
    pub key: u64,
    /// 0 takes it out.
    pub seconds: u32,
}

/// A REGISTER that makes sense, as far as the core must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub aor: String,
    pub contacts: Vec<Asked>,
    /// `Contact: *`.
    pub all: bool,
}

impl Judged {
    /// The longest time that it asks for.
    pub fn longest_s(&self) -> u32 {
        self.contacts.iter().map(|c| c.seconds).max().unwrap_or(0)
    }
}

/// What the core has granted.
pub(super) struct Granted<'a> {
    pub(super) seconds_max: u32,
    /// Host and port of our Contacts stand in the last.
    pub(super) upstream: Option<(&'a Upstream, UpstreamMode, &'a str)>,
}

impl Granted<'_> {
    /// What the core holds of a binding that was made or refreshed.
    pub(super) fn of(&self, aor: &str, b: &Binding, old: Option<Upstream>) -> Option<Upstream> {
        match self.upstream {
            Some((new, mode, at)) => {
                Some(Upstream { contact: uri(aor, b.device_key(), mode, at).into(), ..new.clone() })
            }
            None => old,
        }
    }
}

/// The name of a device at the core: stays as it moves where the device says who it is.
pub(super) fn device_key(contact: &str, instance: &str, reg_id: u32) -> u64 {
    match instance.is_empty() {
        true => contact_key(contact),
        false => contact_key(&format!("{instance} {reg_id}")),
    }
}

/// Our Contact at the core. `rd` and `rc` bring a call for it back to the user and the device.
fn uri(aor: &str, key: u64, mode: UpstreamMode, at: &str) -> String {
    let (user, domain) = aor.rsplit_once('@').unwrap_or(("", aor));
    let user = escape_user(user);
    match mode {
        UpstreamMode::Aor => format!("sip:{user}@{at};rd={domain}"),
        UpstreamMode::Mirror | UpstreamMode::Contact => {
            format!("sip:{user}@{at};rd={domain};rc={key:016x}")
        }
    }
}

impl Registrar {
    /// Whom a Contact of ours at the core stands for; `None` for every other URI.
    pub(super) fn behind(&self, uri: &UriRef<'_>) -> Option<(String, Device)> {
        let domain = uri.params().get("rd").filter(|d| self.policy.upstream_of(d).is_some())?;
        let key = uri.params().get("rc").and_then(|key| u64::from_str_radix(key, 16).ok());
        Some((join(&uri.user_decoded(), domain), key.map_or(Device::Any, Device::Contact)))
    }

    /// Looks at a REGISTER whose sender the core has to judge.
    ///
    /// # Errors
    /// The answer to one that makes no sense whatever the core says.
    pub fn judge(&self, flow: &Flow, message: &Message) -> Result<Judged, Answer> {
        register::judge(&self.policy, &self.users, flow, message)
    }

    /// What the core holds of the bindings that a REGISTER is about.
    pub fn upstream(&self, judged: &Judged, mode: UpstreamMode) -> Option<Upstream> {
        let named = |b: &&Binding| {
            mode == UpstreamMode::Aor
                || judged.all
                || judged.contacts.iter().any(|c| c.key == b.device_key())
        };
        let all = self.bindings.of(&judged.aor).iter().filter(named);
        all.filter_map(|b| b.upstream.as_deref()).max_by_key(|u| u.cseq).cloned()
    }

    /// What the core holds of a binding, where a REGISTER is nothing but its next refresh by the very
    /// same device: the same contact, Call-ID and flow, a higher CSeq.
    pub fn refreshed(
        &self,
        now: Instant,
        flow: &Flow,
        message: &Message,
        judged: &Judged,
    ) -> Option<Upstream> {
        let [asked] = judged.contacts.as_slice() else { return None };
        let (call_id, cseq) = (message.call_id().ok()?, message.cseq().ok()?.number);
        let now_s = self.bindings.seconds(now);
        let same = |b: &&Binding| {
            b.device_key() == asked.key
                && b.contact() == &*asked.contact
                && b.call_id() == call_id
                && b.cseq < cseq
                && b.expires_s > now_s
                && b.flow() == *flow
        };
        let found = self.bindings.of(&judged.aor).iter().find(same)?;
        found.upstream.as_deref().filter(|_| asked.seconds > 0).cloned()
    }

    /// The Contacts of a REGISTER towards the core, each with its time; `expires_s` for what stays.
    pub fn mapped(
        &self,
        judged: &Judged,
        mode: UpstreamMode,
        at: &str,
        expires_s: u32,
    ) -> Vec<(String, u32)> {
        let bindings = self.bindings.of(&judged.aor);
        let named = |b: &Binding| judged.contacts.iter().any(|c| c.key == b.device_key());
        if mode == UpstreamMode::Aor {
            let asks = judged.all || !judged.contacts.is_empty();
            let stays = judged.longest_s() > 0 || (!judged.all && !bindings.iter().all(named));
            let seconds = if stays { expires_s } else { 0 };
            return Vec::from_iter(asks.then(|| (uri(&judged.aor, 0, mode, at), seconds)));
        }
        let mut out: Vec<(String, u32)> = Vec::new();
        for c in &judged.contacts {
            let seconds = if c.seconds == 0 { 0 } else { expires_s };
            out.push((uri(&judged.aor, c.key, mode, at), seconds));
        }
        // What lies there under another name of ours: of all for `*`, else of those that moved to us.
        for b in bindings.iter().filter(|b| judged.all || named(b)) {
            let held = b.upstream.as_deref().map(|u| u.contact.to_string());
            if let Some(held) = held.filter(|held| out.iter().all(|(uri, _)| uri != held)) {
                out.push((held, 0));
            }
        }
        out
    }

    /// The core has been told of everything that this REGISTER changes.
    pub fn settle_upstream(&mut self, judged: &Judged) {
        self.bindings.forget_upstream(&judged.aor, |b| {
            judged.all || judged.contacts.iter().any(|c| c.key == b.device_key())
        });
    }

    /// One registration stands for all of a user's contacts: all know what was said last.
    pub fn share_upstream(&mut self, aor: &str) {
        let all = self.bindings.of(aor).iter().filter_map(|b| b.upstream.as_deref());
        let Some(last) = all.max_by_key(|u| u.cseq).cloned() else { return };
        self.bindings.set_upstream(aor, &last);
    }

    /// Carries out a REGISTER that the core let in, or that it need not hear of (`None`), no longer
    /// than `seconds_max`: the whole answer. `salt` is fresh random.
    pub fn granted(
        &mut self,
        now: Instant,
        salt: u64,
        flow: &Flow,
        message: &Message,
        upstream: Option<(&Upstream, UpstreamMode, &str)>,
        seconds_max: u32,
    ) -> Answer {
        let granted = Granted { seconds_max, upstream };
        let (table, policy, users) = (&mut self.bindings, &*self.policy, &*self.users);
        let access = Access::Anyone;
        let granted = Some(&granted);
        register::register(table, policy, users, now, salt, flow, message, &access, granted)
    }

    /// The core does not know the device any more, or (`all`) the user.
    pub fn drop_refused(&mut self, now: Instant, judged: &Judged, all: bool) {
        let named = |b: &Binding| all || judged.contacts.iter().any(|c| c.key == b.device_key());
        self.bindings.forget_upstream(&judged.aor, named);
        let bindings = self.bindings.of(&judged.aor);
        let kept: Vec<Binding> = bindings.iter().filter(|b| !named(b)).map(Binding::copy).collect();
        if kept.len() < bindings.len() {
            // Fewer than before always fit.
            let _ = self.bindings.replace(now, &judged.aor, kept);
        }
    }
}
