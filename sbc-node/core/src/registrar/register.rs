//! One REGISTER, step by step as RFC 3261 §10.3 has them. Nothing changes unless all of it is
//! right.

use std::time::Instant;

use super::aor::{aor_of, join};
use super::auth::{Access, Users};
use super::binding::{Binding, Said};
use super::gruu::print;
use super::nat::is_natted;
use super::policy::{Overflow, RegistrarPolicy};
use super::table::Bindings;
use super::upstream::{self, Granted, Judged, device_key};
use crate::net::Flow;
use crate::sip::value::{Contact, FromValue};
use crate::sip::{HeaderName, Message, Method, NameAddr, Scheme, UriRef, unquote};
use crate::text::push_number;

/// Option tags that a REGISTER may require.
const SUPPORTED: &str = "path, outbound, gruu";
/// Contacts in one REGISTER; no device has more.
const CONTACTS_MAX: usize = 32;

/// The answer to a request: what goes into its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Empty stands for the registered phrase.
    pub reason: &'static str,
    pub headers: Vec<(HeaderName, String)>,
    /// Credentials came that were wrong: somebody guesses, or mistyped.
    pub wrong_password: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, reason: &'static str) -> Self {
        Answer { status, reason, headers: Vec::new(), wrong_password: false }
    }

    fn with(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// The bit of a method in a contact's `methods` (RFC 3840 §10.6); 0 for unknown ones.
pub(super) fn method_bit(method: &Method) -> u32 {
    Method::KNOWN.iter().position(|m| m == method).map_or(0, |n| 1 << n.min(31))
}

/// A contact that the request names, judged.
struct Asked<'a> {
    said: Said<'a>,
    seconds: u32,
}

/// What the request asks for.
enum Wish<'a> {
    /// Only the list of what is there.
    Nothing,
    RemoveAll,
    Contacts(Vec<Asked<'a>>),
}

/// Judges and carries out a REGISTER of who has proved to be `access`.
#[expect(clippy::too_many_arguments, reason = "a registrar's parts, borrowed one by one")]
pub(super) fn register(
    table: &mut Bindings,
    policy: &RegistrarPolicy,
    users: &Users,
    now: Instant,
    salt: u64,
    flow: &Flow,
    message: &Message,
    access: &Access,
    granted: Option<&Granted<'_>>,
) -> Answer {
    match carry_out(table, policy, users, now, flow, message, access, granted) {
        Ok(aor) => ok(table, policy, now, salt, message, &aor),
        Err(answer) => answer,
    }
}

/// What a REGISTER asks for, for the core registrar that decides.
///
/// # Errors
/// The answer to one that makes no sense.
pub(super) fn judge(
    policy: &RegistrarPolicy,
    users: &Users,
    flow: &Flow,
    message: &Message,
) -> Result<Judged, Answer> {
    let aor = address_of_record(policy, users, message, &Access::Anyone)?;
    let path: String = message.values(HeaderName::Path).collect::<Vec<_>>().join(",");
    outbound_first_hop(message, &path)?;
    let wish = wish(policy, flow, message, &path)?;
    let all = matches!(wish, Wish::RemoveAll);
    let contacts = match wish {
        Wish::Nothing | Wish::RemoveAll => Vec::new(),
        Wish::Contacts(asked) => asked
            .into_iter()
            .map(|Asked { said, seconds }| upstream::Asked {
                contact: said.contact.into(),
                key: device_key(said.contact, said.instance, said.reg_id),
                seconds,
            })
            .collect(),
    };
    Ok(Judged { aor, contacts, all })
}

#[expect(clippy::too_many_arguments, reason = "a registrar's parts, borrowed one by one")]
fn carry_out(
    table: &mut Bindings,
    policy: &RegistrarPolicy,
    users: &Users,
    now: Instant,
    flow: &Flow,
    message: &Message,
    access: &Access,
    granted: Option<&Granted<'_>>,
) -> Result<String, Answer> {
    let aor = address_of_record(policy, users, message, access)?;
    let path: String = message.values(HeaderName::Path).collect::<Vec<_>>().join(",");
    outbound_first_hop(message, &path)?;
    let wish = wish(policy, flow, message, &path)?;
    let new = match wish {
        Wish::Nothing => return Ok(aor),
        Wish::RemoveAll => {
            in_order(table.of(&aor), message)?;
            Vec::new()
        }
        Wish::Contacts(asked) => merge(table, policy, now, &aor, asked, granted)?,
    };
    let full = |_| Answer::new(503, "Too Many Registrations").with(HeaderName::RetryAfter, 60);
    table.replace(now, &aor, new).map_err(full)?;
    Ok(aor)
}

/// Steps 1 to 5: whose bindings they are, and whether the sender may change them.
fn address_of_record(
    policy: &RegistrarPolicy,
    users: &Users,
    message: &Message,
    access: &Access,
) -> Result<String, Answer> {
    let bad = |_| Answer::new(400, "Bad Request: malformed URI");
    let domain = message.request_uri().map_err(bad)?;
    if !domain.is_sip() {
        return Err(Answer::new(416, ""));
    }
    if !policy.serves(domain.host()) {
        return Err(Answer::new(404, "Domain Not Served"));
    }
    let unknown: Vec<&str> = message
        .values(HeaderName::Require)
        .filter(|tag| !SUPPORTED.split(", ").any(|s| s.eq_ignore_ascii_case(tag)))
        .collect();
    if !unknown.is_empty() {
        return Err(Answer::new(420, "").with(HeaderName::Unsupported, unknown.join(", ")));
    }
    let to = message.to().map_err(|_| Answer::new(400, "Bad Request: malformed To"))?;
    let to = to.uri().map_err(|_| Answer::new(400, "Bad Request: malformed To"))?;
    if !to.is_sip() {
        return Err(Answer::new(416, ""));
    }
    let aor = aor_of(&to).ok_or(Answer::new(404, ""))?;
    if !policy.serves(to.host()) {
        return Err(Answer::new(404, ""));
    }
    // An alias rings the address of record and has no bindings of its own: they would lie with
    // another shard than the one that is asked for them.
    if users.resolve(&aor) != aor {
        return Err(Answer::new(404, ""));
    }
    match access {
        _ if access.owns(users, &aor) => Ok(aor),
        // Whose it is, another system knows.
        Access::Remote(_) => Err(Answer::new(403, "")),
        Access::Anyone | Access::User(_) => {
            Err(Answer::new(if users.has(&aor) { 403 } else { 404 }, ""))
        }
    }
}

/// RFC 5626 §6: flows are kept only where the first hop knows them. That is us, or the sender of
/// the first Path value, which then says `ob`.
fn outbound_first_hop(message: &Message, path: &str) -> Result<(), Answer> {
    let first = crate::sip::List::new(path).next();
    let ob = first.and_then(|p| NameAddr::from_value(p).ok()).and_then(|p| p.uri().ok());
    let direct = message.values(HeaderName::Via).nth(1).is_none();
    if direct || ob.is_some_and(|uri| uri.params().has("ob")) {
        return Ok(());
    }
    let asks = message.lists(HeaderName::Require, "outbound")
        || message.values(HeaderName::Contact).any(|c| {
            Contact::from_value(c).is_ok_and(|c| match c {
                Contact::Addr(addr) => addr.params.has("reg-id"),
                Contact::Star => false,
            })
        });
    if asks && message.lists(HeaderName::Supported, "outbound") {
        return Err(Answer::new(439, "First Hop Lacks Outbound Support"));
    }
    Ok(())
}

/// Steps 6 and 7: what the Contacts say.
fn wish<'a>(
    policy: &RegistrarPolicy,
    flow: &Flow,
    message: &'a Message,
    path: &'a str,
) -> Result<Wish<'a>, Answer> {
    let bad = Answer::new;
    let mut contacts: Vec<Asked<'a>> = Vec::new();
    let (mut star, mut flows) = (false, 0);
    let header = message.header(HeaderName::Expires).and_then(seconds);
    for value in message.values(HeaderName::Contact) {
        let contact =
            Contact::from_value(value).map_err(|_| bad(400, "Bad Request: malformed Contact"))?;
        let addr = match contact {
            Contact::Star => {
                star = true;
                continue;
            }
            Contact::Addr(addr) => addr,
        };
        let asked = contact_wish(policy, flow, message, path, &addr, header)?;
        flows += u32::from(asked.said.reg_id != 0 && asked.seconds > 0);
        contacts.push(asked);
        if contacts.len() > CONTACTS_MAX {
            return Err(bad(400, "Bad Request: too many Contacts"));
        }
    }
    // RFC 5626 §6.
    if flows > 1 {
        return Err(bad(400, "Bad Request: several Contacts with reg-id"));
    }
    match (star, contacts.is_empty()) {
        (false, true) => Ok(Wish::Nothing),
        (false, false) => Ok(Wish::Contacts(contacts)),
        (true, true) if header == Some(0) => Ok(Wish::RemoveAll),
        (true, _) => Err(bad(400, "Bad Request: Contact * stands alone with Expires 0")),
    }
}

fn contact_wish<'a>(
    policy: &RegistrarPolicy,
    flow: &Flow,
    message: &'a Message,
    path: &'a str,
    addr: &NameAddr<'a>,
    header: Option<u32>,
) -> Result<Asked<'a>, Answer> {
    let bad = Answer::new;
    let uri = addr.uri().map_err(|_| bad(400, "Bad Request: malformed Contact"))?;
    if !uri.is_sip() {
        return Err(bad(400, "Bad Request: Contact is no SIP URI"));
    }
    if uri.scheme() == Scheme::Sips && !secure_all_the_way(flow, message) {
        return Err(bad(400, "Bad Request: a sips Contact wants sips and TLS all the way"));
    }
    // A value that makes no sense counts as none (§10.3 step 7, §20.19).
    let wished = addr.params.get("expires").and_then(seconds).or(header);
    let seconds = match wished.unwrap_or(policy.expires_default) {
        0 => 0,
        s if s < policy.expires_min => {
            return Err(bad(423, "").with(HeaderName::MinExpires, policy.expires_min));
        }
        s => s.min(policy.expires_max),
    };
    let q = match addr.params.get("q") {
        None => 1_000,
        Some(text) => thousandths(text).ok_or(bad(400, "Bad Request: malformed q"))?,
    };
    let instance = addr
        .params
        .get("+sip.instance")
        .map_or("", |v| v.trim_matches('"').trim_start_matches('<').trim_end_matches('>'));
    let outbound = !instance.is_empty()
        && (message.lists(HeaderName::Supported, "outbound")
            || message.lists(HeaderName::Require, "outbound"));
    let reg_id = match addr.params.get("reg-id").filter(|_| outbound) {
        None => 0,
        Some(text) => text
            .parse::<u32>()
            .ok()
            .filter(|id| (1..1 << 31).contains(id))
            .ok_or(bad(400, "Bad Request: malformed reg-id"))?,
    };
    let methods = addr.params.get("methods").map_or(0, |list| {
        let list = unquote(list);
        list.split(',').map(|m| method_bit(&Method::new(m.trim()))).fold(0, |all, bit| all | bit)
    });
    let cseq = message.cseq().map_err(|_| bad(400, "Bad Request: malformed CSeq"))?;
    let call_id = message.call_id().map_err(|_| bad(400, "Bad Request: malformed Call-ID"))?;
    let via = message.via().map_err(|_| bad(400, "Bad Request: malformed Via"))?;
    Ok(Asked {
        said: Said {
            contact: addr.uri_str,
            call_id,
            cseq: cseq.number,
            path,
            instance,
            reg_id,
            q,
            methods,
            // With Path the first hop keeps the way open, not we.
            natted: path.is_empty() && is_natted(flow, &via, &uri),
            flow: *flow,
        },
        seconds,
    })
}

/// RFC 5630 §5.2: a `sips:` Contact is taken where the Request-URI and every Path are `sips:` as well;
/// without Path it has come over TLS.
fn secure_all_the_way(flow: &Flow, message: &Message) -> bool {
    let is_sips = |uri: &str| UriRef::parse(uri).is_ok_and(|uri| uri.scheme() == Scheme::Sips);
    let hop = |path: &str| NameAddr::from_value(path).is_ok_and(|path| is_sips(path.uri_str));
    let mut path = message.values(HeaderName::Path).peekable();
    let way = match path.peek() {
        None => flow.transport.is_secure(),
        Some(_) => path.all(hop),
    };
    way && is_sips(message.request_uri_str())
}

/// The set of bindings after the request: the old ones, with those that it names made anew,
/// refreshed or taken out.
fn merge(
    table: &Bindings,
    policy: &RegistrarPolicy,
    now: Instant,
    aor: &str,
    asked: Vec<Asked<'_>>,
    granted: Option<&Granted<'_>>,
) -> Result<Vec<Binding>, Answer> {
    let now_s = table.seconds(now);
    let mut kept: Vec<&Binding> = table.of(aor).iter().filter(|b| b.expires_s > now_s).collect();
    let before = kept.len();
    let mut fresh: Vec<Binding> = Vec::new();
    for Asked { said, seconds } in asked {
        let old = kept.iter().position(|b| is_same(b, &said));
        let (mut stored_s, mut upstream) = (0, None);
        let seconds = granted.map_or(seconds, |g| seconds.min(g.seconds_max));
        if let Some(old) = old.map(|at| kept.swap_remove(at)) {
            if old.call_id() == said.call_id && said.cseq <= old.cseq {
                return Err(out_of_order());
            }
            stored_s = old.stored_s;
            upstream = old.upstream.as_deref().cloned();
        }
        // The same contact twice in one request: the last word counts.
        fresh.retain(|b| !is_same(b, &said));
        if seconds == 0 {
            continue;
        }
        let mut binding = Binding::new(&said, now_s, now_s.saturating_add(seconds))
            .ok_or(Answer::new(400, "Bad Request: Contact too long"))?;
        binding.stored_s = stored_s;
        binding.upstream = granted.and_then(|g| g.of(aor, &binding, upstream)).map(Box::new);
        fresh.push(binding);
    }
    let max = policy.contacts_max.max(1);
    if fresh.len() > max {
        return Err(Answer::new(403, "Too Many Contacts"));
    }
    while kept.len() + fresh.len() > max && !fresh.is_empty() {
        match policy.overflow {
            Overflow::Reject if kept.len() + fresh.len() > before => {
                return Err(Answer::new(403, "Too Many Contacts"));
            }
            Overflow::Reject => break,
            Overflow::ReplaceOldest => {
                let oldest = kept.iter().enumerate().min_by_key(|(_, b)| b.refreshed_s);
                let Some(at) = oldest.map(|(at, _)| at) else { break };
                kept.swap_remove(at);
            }
        }
    }
    fresh.extend(kept.into_iter().map(Binding::copy));
    Ok(fresh)
}

/// Whether a binding is the one that a contact names: the same flow of the same device (RFC 5626
/// §6), or an equivalent URI (RFC 3261 §19.1.4).
fn is_same(b: &Binding, said: &Said<'_>) -> bool {
    if said.reg_id != 0 || b.reg_id != 0 {
        return b.reg_id == said.reg_id && b.instance() == said.instance;
    }
    if b.contact() == said.contact {
        return true;
    }
    let parsed = crate::sip::UriRef::parse;
    match (parsed(b.contact()), parsed(said.contact)) {
        (Ok(old), Ok(new)) => old.is_equivalent(&new),
        _ => false,
    }
}

/// §10.3 step 6: an older request of the same device must not undo a newer one.
fn in_order(bindings: &[Binding], message: &Message) -> Result<(), Answer> {
    let (Ok(call_id), Ok(cseq)) = (message.call_id(), message.cseq()) else {
        return Err(Answer::new(400, ""));
    };
    if bindings.iter().any(|b| b.call_id() == call_id && cseq.number <= b.cseq) {
        return Err(out_of_order());
    }
    Ok(())
}

fn out_of_order() -> Answer {
    Answer::new(500, "CSeq Out Of Order")
}

/// Step 8: all bindings that are there now.
fn ok(
    table: &Bindings,
    policy: &RegistrarPolicy,
    now: Instant,
    salt: u64,
    message: &Message,
    aor: &str,
) -> Answer {
    let now_s = table.seconds(now);
    let mut answer = Answer::new(200, "");
    answer.headers.reserve(2);
    let gruu = message.lists(HeaderName::Supported, "gruu");
    let mut outbound = false;
    for b in table.of(aor).iter().filter(|b| b.expires_s > now_s) {
        let mut contact = String::with_capacity(b.contact().len() + 24);
        ["<", b.contact(), ">;expires="].into_iter().for_each(|piece| contact.push_str(piece));
        push_number(&mut contact, b.expires_s - now_s);
        if b.q != 1_000 {
            contact.push_str(&format!(";q={}.{:03}", b.q / 1_000, b.q % 1_000));
        }
        if !b.instance().is_empty() {
            contact.push_str(&format!(";+sip.instance=\"<{}>\"", b.instance()));
            if gruu {
                contact.push_str(&format!(";pub-gruu=\"sip:{aor};gr={}\"", b.instance()));
                let host = aor.rsplit_once('@').map_or("", |(_, host)| host);
                let key = &policy.gruu_key;
                if let Some(user) = key.mint(aor, print(b.instance(), b.call_id()), salt) {
                    contact.push_str(&format!(";temp-gruu=\"sip:{user}@{host};gr\""));
                }
            }
        }
        if b.reg_id != 0 {
            contact.push_str(&format!(";reg-id={}", b.reg_id));
            outbound = true;
        }
        answer.headers.push((HeaderName::Contact, contact));
    }
    for path in message.lines(HeaderName::Path) {
        answer.headers.push((HeaderName::Path, path.to_owned()));
    }
    for route in &policy.service_route {
        answer.headers.push((HeaderName::ServiceRoute, route.to_string()));
    }
    if outbound {
        answer.headers.push((HeaderName::Require, "outbound".to_owned()));
    }
    answer.headers.push((HeaderName::Supported, SUPPORTED.to_owned()));
    answer
}

/// Delta-seconds; what is too large counts as the largest.
fn seconds(text: &str) -> Option<u32> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

/// A q value (RFC 3261 §25.1 qvalue) in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    if rest.len() > 3 || !rest.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part: u16 = format!("{rest:0<3}").parse().ok()?;
    match whole {
        "0" | "" if !text.is_empty() => Some(part),
        "1" if part == 0 => Some(1_000),
        _ => None,
    }
}

/// Which user a Request-URI calls, and which device of it (`gr`, RFC 5627 §5.1).
pub(super) fn called(users: &Users, user: &str, host: &str) -> String {
    let aor = join(user, host);
    users.resolve(&aor).to_owned()
}
