//! Replaces (RFC 3891): dialog identifiers that one leg knows become those that the other knows.

use super::call::{Call, Leg, Phase};
use super::env::Cx;
use super::table::Calls;
use crate::media::Side;
use crate::routing::Trunk;
use crate::sip::{Builder, HeaderName, Message, Params};

/// A dialog as a peer of ours names it: Call-ID, its own tag, our tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) call_id: String,
    pub(crate) to_tag: String,
    pub(crate) from_tag: String,
    pub(crate) early_only: bool,
}

impl Named {
    /// Reads a Replaces value: `callid;to-tag=…;from-tag=…[;early-only]`.
    pub(crate) fn parse(value: &str) -> Option<Named> {
        let (call_id, params) = value.split_at(value.find(';')?);
        let params = Params(params);
        Some(Named {
            call_id: call_id.trim().to_owned(),
            to_tag: params.get("to-tag")?.to_owned(),
            from_tag: params.get("from-tag")?.to_owned(),
            early_only: params.has("early-only"),
        })
    }

    pub(crate) fn value(&self) -> String {
        let early = if self.early_only { ";early-only" } else { "" };
        let Named { call_id, to_tag, from_tag, .. } = self;
        format!("{call_id};to-tag={to_tag};from-tag={from_tag}{early}")
    }
}

/// How the peer of a leg names the dialog that it shares with us: `to-tag` is the tag of whoever
/// is to be replaced in, the receiver of the INVITE with Replaces.
fn named_for_peer(leg: &Leg, early_only: bool) -> Named {
    Named {
        call_id: leg.dialog.call_id.to_string(),
        to_tag: leg.dialog.remote_tag.to_string(),
        from_tag: leg.dialog.local_tag.to_string(),
        early_only,
    }
}

impl Calls {
    /// The leg whose dialog a peer names, with either of the tags as ours.
    pub(crate) fn named<'c>(&'c self, cx: &Cx<'_>, named: &Named) -> Option<(&'c Call, Side)> {
        let by_tag = |ours: &str, theirs: &str| {
            let dialog = cx.env.tags.get(ours)?;
            let call = self.get(dialog.call)?;
            let leg = call.leg(dialog.side)?;
            leg.dialog.is(&named.call_id, theirs).then_some((call, dialog.side))
        };
        by_tag(&named.to_tag, &named.from_tag).or_else(|| by_tag(&named.from_tag, &named.to_tag))
    }

    /// The Replaces of an INVITE that came to us: what it means is decided when its target is
    /// known. `Err` when it names no dialog of ours (RFC 3891 §3: 481).
    pub(crate) fn check_replaces(
        &self,
        cx: &Cx<'_>,
        message: &Message,
    ) -> Result<Option<Replaced>, ()> {
        let Some(value) = message.header(HeaderName::Replaces) else { return Ok(None) };
        let named = Named::parse(value).ok_or(())?;
        let (call, side) = self.named(cx, &named).ok_or(())?;
        if !matches!(call.phase, Phase::Up | Phase::Setup(_)) {
            return Err(());
        }
        let of = |side: Side| {
            let leg = call.leg(side)?;
            Some((leg.trunk.config.name.clone(), named_for_peer(leg, named.early_only)))
        };
        Ok(Some(Replaced { near: of(side), far: of(side.other()) }))
    }

    /// Refer-To's Replaces: the dialog that the referrer names becomes the one that the call's
    /// other peer shares with us, which is what the new call must replace.
    pub(crate) fn map_refer(&self, cx: &Cx<'_>, value: &str) -> Option<String> {
        let named = Named::parse(value)?;
        let (call, side) = self.named(cx, &named)?;
        Some(named_for_peer(call.leg(side.other())?, named.early_only).value())
    }
}

/// Both legs of the call that an INVITE with Replaces is about, by trunk.
#[derive(Clone, Debug)]
pub(crate) struct Replaced {
    near: Option<(std::sync::Arc<str>, Named)>,
    far: Option<(std::sync::Arc<str>, Named)>,
}

impl Replaced {
    /// The dialog as the trunk that the INVITE goes to knows it. The leg that was named wins where
    /// both are on that trunk: its identifiers were mapped when they were handed out.
    fn on(&self, trunk: &Trunk) -> Option<&Named> {
        let of = |side: &'_ Option<(std::sync::Arc<str>, Named)>| {
            side.as_ref().is_some_and(|(name, _)| *name == trunk.config.name)
        };
        match (of(&self.near), of(&self.far)) {
            (true, _) => self.near.as_ref().map(|(_, named)| named),
            (false, true) => self.far.as_ref().map(|(_, named)| named),
            (false, false) => None,
        }
    }
}

/// Writes the Replaces of an INVITE for the trunk that it goes to.
pub(crate) fn cross(out: &mut Builder, replaced: Option<&Replaced>, to: &Trunk) {
    if let Some(named) = replaced.and_then(|r| r.on(to)) {
        out.header(HeaderName::Replaces, named.value());
        out.header(HeaderName::Require, "replaces");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3891_6_1_values() {
        let value = "98732@sip.example.com;from-tag=r33th4x0r;to-tag=ff87ff";
        let named = Named::parse(value).unwrap();
        assert_eq!(named.to_tag, "ff87ff");
        assert_eq!(named.value(), "98732@sip.example.com;to-tag=ff87ff;from-tag=r33th4x0r");
        assert_eq!(Named::parse("98732@sip.example.com;from-tag=x"), None);
        let early = Named::parse("a;to-tag=b;from-tag=c;early-only").unwrap();
        assert!(early.value().ends_with(";early-only"));
    }
}
