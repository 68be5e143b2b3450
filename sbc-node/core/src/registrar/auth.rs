//! Digest authentication of users (RFC 3261 §22, RFC 8760): who may do what, and that no answer is
//! good twice.
//!
//! The arithmetic lives in `digest/`. Nonces need no table; only the highest count seen with each
//! is remembered, in a table of fixed size that all shards share without a lock.

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};

use super::policy::AuthPolicy;
use super::register::Answer;
use super::remote::{AskUser, Known, Remote};
use crate::digest::{Algorithm, Denied, HeaderFault, Presented, Server, Verified};
use crate::net::Flow;
use crate::sip::{HeaderName, Message, Method};

/// A user's stored credentials: HA1 per algorithm, in hex (never the password). No `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct User {
    pub md5: Option<Box<str>>,
    pub sha256: Option<Box<str>>,
    pub sha512_256: Option<Box<str>>,
    /// Addresses of record that the user may register and speak for, `user@domain`.
    pub aors: Vec<Box<str>>,
}

/// All users, and under which names they are called. No `Debug`: it holds credentials.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Users {
    by_name: HashMap<Box<str>, User>,
    /// Other addresses (numbers, nicknames) to the address of record.
    aliases: HashMap<Box<str>, Box<str>>,
    /// Addresses of record whose user part is not the name of their user.
    others: HashSet<Box<str>>,
}

impl Users {
    /// Adds a user; false when the name is taken.
    pub fn insert(&mut self, name: &str, user: User) -> bool {
        if self.by_name.contains_key(name) {
            return false;
        }
        for aor in &user.aors {
            if user_part(aor) != name {
                self.others.insert(aor.clone());
            }
        }
        self.by_name.insert(name.into(), user);
        true
    }

    /// Lets an address stand for an address of record; false when it is taken.
    pub fn alias(&mut self, alias: &str, aor: &str) -> bool {
        if self.aliases.contains_key(alias) {
            return false;
        }
        self.aliases.insert(alias.into(), aor.into());
        true
    }

    pub fn get(&self, name: &str) -> Option<&User> {
        self.by_name.get(name)
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Every user with its name, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &User)> {
        self.by_name.iter().map(|(name, user)| (&**name, user))
    }

    /// Every alias with what it stands for, in no order.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(alias, aor)| (&**alias, &**aor))
    }

    /// The address of record that an address stands for.
    pub fn resolve<'a>(&'a self, aor: &'a str) -> &'a str {
        self.aliases.get(aor).map_or(aor, |real| real)
    }

    /// Whether an address is anybody's: an address of record, an alias, or a name with its domain.
    pub fn knows(&self, aor: &str) -> bool {
        self.has(aor) || self.owns(aor, aor) || self.aliases.contains_key(aor)
    }

    /// Whether some user owns an address of record.
    pub fn has(&self, aor: &str) -> bool {
        self.owns(user_part(aor), aor) || self.others.contains(aor)
    }

    /// Whether this user owns an address of record.
    pub fn owns(&self, name: &str, aor: &str) -> bool {
        self.by_name.get(name).is_some_and(|user| user.aors.iter().any(|own| **own == *aor))
    }
}

fn user_part(aor: &str) -> &str {
    aor.split_once('@').map_or(aor, |(user, _)| user)
}

/// The highest nonce count seen per nonce: a fixed number of places, the newest nonce of two that
/// share one wins. Only requests that proved a password write to it.
pub struct Replays {
    hasher: DefaultHashBuilder,
    places: Box<[AtomicU64]>,
}

impl Replays {
    /// `places` is rounded up to a power of two; a million take 8 MB.
    pub fn new(places: usize) -> Self {
        let places = (0..places.next_power_of_two().max(2)).map(|_| AtomicU64::new(0));
        Replays { hasher: DefaultHashBuilder::default(), places: places.collect() }
    }

    /// Takes a use of a nonce; `false` when this count was used before. Without quality of
    /// protection the count is 0 and a nonce is good once.
    fn take(&self, nonce: &str, count: u32) -> bool {
        let hash = self.hasher.hash_one(nonce);
        let index = usize::try_from(hash).unwrap_or(0) & (self.places.len() - 1);
        let Some(place) = self.places.get(index) else { return false };
        let (print, count) = (hash >> 32 << 32, u64::from(count.max(1)));
        let update = |seen: u64| {
            let same = seen >> 32 << 32 == print;
            (!same || seen & u64::from(u32::MAX) < count).then_some(print | count)
        };
        place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).is_ok()
    }
}

/// Who sends a request.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    /// Authentication is off.
    Anyone,
    /// Proved to be this user.
    User(Box<str>),
    /// Proved to be a user of another system.
    Remote(Arc<User>),
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Access::Anyone => f.write_str("Anyone"),
            Access::User(name) => f.debug_tuple("User").field(name).finish(),
            Access::Remote(user) => f.debug_tuple("Remote").field(&user.aors).finish(),
        }
    }
}

impl Access {
    /// Whether the sender may act for an address of record.
    pub fn owns(&self, users: &Users, aor: &str) -> bool {
        match self {
            Access::Anyone => true,
            Access::User(name) => users.owns(name, aor),
            Access::Remote(user) => user.aors.iter().any(|own| **own == *aor),
        }
    }
}

impl User {
    fn ha1(&self, algorithm: Algorithm) -> Option<&str> {
        let ha1 = match algorithm {
            Algorithm::Md5 | Algorithm::Md5Sess => &self.md5,
            Algorithm::Sha256 | Algorithm::Sha256Sess => &self.sha256,
            Algorithm::Sha512Trunc256 | Algorithm::Sha512Trunc256Sess => &self.sha512_256,
        };
        ha1.as_deref()
    }
}

/// A moment, as the check needs it.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// Unix time, which the nodes share.
    pub(super) now_s: u64,
    /// Fresh random.
    pub(super) salt: u64,
}

/// The check of one shard.
pub struct Guard {
    server: Server,
    open: Vec<Method>,
    users: Arc<Users>,
    replays: Arc<Replays>,
}

impl Guard {
    pub fn new(policy: &AuthPolicy, users: Arc<Users>, replays: Arc<Replays>) -> Self {
        let server = Server::new(
            policy.realm.clone(),
            &policy.key,
            policy.nonce_ttl.as_secs(),
            policy.algorithms.clone(),
        );
        Guard { server, open: policy.open.clone(), users, replays }
    }

    fn is_open(&self, message: &Message) -> bool {
        message.method().is_some_and(|method| self.open.contains(method))
    }

    /// Where a request has its credentials: REGISTER is challenged as by a server (401), all others
    /// as by a proxy (407), RFC 3261 §22.1 and §22.3.
    fn given(message: &Message) -> HeaderName {
        match message.method() {
            Some(Method::Register) => HeaderName::Authorization,
            _ => HeaderName::ProxyAuthorization,
        }
    }

    /// Whom to ask another system for before a request can be checked.
    pub(super) fn lacks(
        &self,
        message: &Message,
        flow: &Flow,
        remote: &Remote,
        at: Moment,
    ) -> Option<AskUser> {
        if self.is_open(message) {
            return None;
        }
        let plausible = |value| self.server.plausible(&presented(value, message, flow), at.now_s);
        let c = message.values(Self::given(message)).find_map(plausible)?;
        let known = self.users.get(c.username).is_some()
            || remote.known(at.now, c.username, c.response()).is_some();
        (!known).then(|| AskUser::of(&c, message))
    }

    /// Checks a request outside dialogs, of whatever method.
    ///
    /// # Errors
    /// The answer to send: a challenge, or 400 for credentials that make no sense.
    pub(super) fn check(
        &self,
        message: &Message,
        flow: &Flow,
        remote: Option<&Remote>,
        at: Moment,
    ) -> Result<Access, Answer> {
        if self.is_open(message) {
            return Ok(Access::Anyone);
        }
        let given = Self::given(message);
        let mut stale = false;
        let mut any = false;
        for value in message.values(given) {
            match self.verify(&presented(value, message, flow), remote, at) {
                Ok(access) => return Ok(access),
                // What is for somebody else, or of a scheme that we do not know, is as good as nothing.
                Err(Denied::WrongRealm | Denied::Malformed(HeaderFault::NotDigest)) => continue,
                Err(Denied::Malformed(_) | Denied::WrongUri) => {
                    return Err(Answer::new(400, "Bad Request: credentials"));
                }
                // A nonce of ours for another address is as good as an old one.
                Err(Denied::Stale | Denied::ForeignNonce) => stale = true,
                Err(Denied::WrongAlgorithm | Denied::WrongPassword) => any = true,
            }
        }
        let source = Some(flow.remote.ip());
        let challenges = self.server.challenge(at.now_s, at.salt, source, stale && !any);
        let (status, name) = match given {
            HeaderName::Authorization => (401, HeaderName::WwwAuthenticate),
            _ => (407, HeaderName::ProxyAuthenticate),
        };
        let mut answer = Answer::new(status, "");
        answer.wrong_password = any;
        answer.headers.extend(challenges.into_iter().map(|c| (name, c)));
        Err(answer)
    }

    fn verify(
        &self,
        presented: &Presented<'_>,
        remote: Option<&Remote>,
        at: Moment,
    ) -> Result<Access, Denied> {
        let mut from = None;
        let known = |name: &str, response: &str| remote?.known(at.now, name, response);
        if let Some(c) = remote.and_then(|_| self.server.plausible(presented, at.now_s))
            && let Some(Known::Judged(user)) = known(c.username, c.response())
        {
            let user = user.ok_or(Denied::WrongPassword)?;
            self.used(&Server::judged(&c))?;
            return Ok(Access::Remote(user.clone()));
        }
        let verified = self.server.verify(presented, at.now_s, |name, algorithm| {
            if let Some(user) = self.users.get(name) {
                return user.ha1(algorithm).map(Cow::Borrowed);
            }
            match known(name, "") {
                Some(Known::Ha1(user)) => {
                    from = Some(user.clone());
                    user.ha1(algorithm).map(|ha1| Cow::Owned(ha1.to_owned()))
                }
                Some(Known::Nobody | Known::Judged(_)) | None => None,
            }
        })?;
        self.used(&verified)?;
        Ok(from.map_or_else(|| Access::User(verified.username.into()), Access::Remote))
    }

    fn used(&self, verified: &Verified<'_>) -> Result<(), Denied> {
        let new = self.replays.take(verified.nonce, verified.count);
        if new { Ok(()) } else { Err(Denied::Stale) }
    }
}

fn presented<'a>(authorization: &'a str, message: &'a Message, flow: &Flow) -> Presented<'a> {
    Presented {
        authorization,
        method: message.method().map_or("", |m| m.as_str()),
        request_uri: message.request_uri_str(),
        body: message.body(),
        source: Some(flow.remote.ip()),
    }
}
