//! Digest authentication of users (RFC 3261 §22, RFC 8760): who may do what, and that no answer is
//! good twice.
//!
//! The arithmetic lives in `digest/`. Nonces need no table; only the highest count seen with each
//! is remembered, in a table of fixed size that all shards share without a lock.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{DefaultHashBuilder, HashMap, HashSet};

use super::policy::AuthPolicy;
use super::register::Answer;
use crate::digest::{Algorithm, Denied, HeaderFault, Presented, Server};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Authentication is off.
    Anyone,
    /// Proved to be this user.
    User(Box<str>),
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
        let server = Server {
            realm: policy.realm.clone(),
            key: policy.key.clone(),
            nonce_ttl_s: policy.nonce_ttl.as_secs(),
            algorithms: policy.algorithms.clone(),
        };
        Guard { server, open: policy.open.clone(), users, replays }
    }

    /// Checks a request outside dialogs, of whatever method. `now_s` is Unix time, which the nodes
    /// share; `salt` fresh random. REGISTER is challenged as by a server (401), all others as by a
    /// proxy (407), RFC 3261 §22.1 and §22.3.
    ///
    /// # Errors
    /// The answer to send: a challenge, or 400 for credentials that make no sense.
    pub fn check(
        &self,
        message: &Message,
        flow: &Flow,
        now_s: u64,
        salt: u64,
    ) -> Result<Access, Answer> {
        if message.method().is_some_and(|method| self.open.contains(method)) {
            return Ok(Access::Anyone);
        }
        let register = message.method() == Some(&Method::Register);
        let given =
            if register { HeaderName::Authorization } else { HeaderName::ProxyAuthorization };
        let mut stale = false;
        let mut any = false;
        for value in message.values(given) {
            match self.verify(value, message, flow, now_s) {
                Ok(name) => return Ok(Access::User(name)),
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
        let challenges = self.server.challenge(now_s, salt, source, stale && !any);
        let (status, name) = if register {
            (401, HeaderName::WwwAuthenticate)
        } else {
            (407, HeaderName::ProxyAuthenticate)
        };
        let mut answer = Answer::new(status, "");
        answer.wrong_password = any;
        answer.headers.extend(challenges.into_iter().map(|c| (name, c)));
        Err(answer)
    }

    fn verify(
        &self,
        authorization: &str,
        message: &Message,
        flow: &Flow,
        now_s: u64,
    ) -> Result<Box<str>, Denied> {
        let presented = Presented {
            authorization,
            method: message.method().map_or("", |m| m.as_str()),
            request_uri: message.request_uri_str(),
            body: message.body(),
            source: Some(flow.remote.ip()),
        };
        let verified = self.server.verify(&presented, now_s, |name, algorithm| {
            let user = self.users.get(name)?;
            let ha1 = match algorithm {
                Algorithm::Md5 | Algorithm::Md5Sess => &user.md5,
                Algorithm::Sha256 | Algorithm::Sha256Sess => &user.sha256,
                Algorithm::Sha512Trunc256 | Algorithm::Sha512Trunc256Sess => &user.sha512_256,
            };
            ha1.as_deref().map(str::to_owned)
        })?;
        if !self.replays.take(verified.nonce, verified.count) {
            return Err(Denied::Stale);
        }
        Ok(verified.username.into())
    }
}
