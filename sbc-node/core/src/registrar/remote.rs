//! Users whom another system knows (SQL, RADIUS): whom to ask for, and what was told, for a while.
//!
//! ```text
//! request ─▶ Registrar::lacks ─ Some(AskUser) ─▶ edge ─▶ Found ─▶ Registrar::learned ─▶ request again
//!                └ None: all that is needed is known, or nothing needs to be
//! ```
//!
//! Asked for are only users whose credentials have a fresh nonce of ours. Bounded: users remembered
//! here, requests that wait in `core/ask.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::auth::User;
use crate::digest::{Algorithm, Credentials};
use crate::sip::Message;

/// How the other system is used; values only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemotePolicy {
    /// How long a user is remembered, and how long that there is none.
    pub keep: Duration,
    pub keep_unknown: Duration,
    /// Users of one shard that are remembered; the oldest goes first.
    pub users_max: usize,
    /// Requests of one shard that may wait; the next ones get `unavailable`.
    pub waiting_max: usize,
    /// The answer while the other system does not answer: 503 with Retry-After, or 480.
    pub unavailable: u16,
}

/// Who is asked for, with the credentials that came.
#[derive(Clone, PartialEq, Eq)]
pub struct AskUser {
    pub name: Box<str>,
    pub realm: Box<str>,
    pub method: Box<str>,
    pub algorithm: Algorithm,
    pub nonce: Box<str>,
    pub uri: Box<str>,
    /// `auth` or `auth-int`; empty without.
    pub qop: &'static str,
    pub nc: Box<str>,
    pub cnonce: Box<str>,
    pub response: Box<str>,
}

impl fmt::Debug for AskUser {
    /// Without the response: it lets a password be guessed off line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskUser").field("name", &self.name).finish_non_exhaustive()
    }
}

impl AskUser {
    pub(super) fn of(c: &Credentials<'_>, message: &Message) -> AskUser {
        AskUser {
            name: c.username.into(),
            realm: c.realm.into(),
            method: message.method().map_or("", |m| m.as_str()).into(),
            algorithm: c.algorithm,
            nonce: c.nonce.into(),
            uri: c.uri.into(),
            qop: c.qop.map_or("", |qop| qop.as_str()),
            nc: c.nc.into(),
            cnonce: c.cnonce.into(),
            response: c.response().into(),
        }
    }
}

/// What the other system says.
#[derive(Clone, PartialEq, Eq)]
pub enum Found {
    /// The user's HA1 and addresses.
    User(Arc<User>),
    /// There is none of that name.
    Nobody,
    /// The credentials are right; the user has these addresses (HA1 stays there).
    Right(Arc<User>),
    /// The credentials are wrong, or there is no such user: who judges them does not tell.
    Wrong,
    /// No answer in time.
    Unavailable,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::User(_) => "User",
            Found::Nobody => "Nobody",
            Found::Right(_) => "Right",
            Found::Wrong => "Wrong",
            Found::Unavailable => "Unavailable",
        })
    }
}

/// What is known of a user's credentials.
pub(super) enum Known<'a> {
    Ha1(&'a Arc<User>),
    Nobody,
    Judged(Option<&'a Arc<User>>),
}

/// What was told, of one shard.
pub(super) struct Remote {
    pub(super) policy: RemotePolicy,
    users: HashMap<Box<str>, (Option<Arc<User>>, Instant)>,
    /// In the order in which they were learnt.
    order: VecDeque<(Instant, Box<str>)>,
    /// The judgement of the one request that is being handled: its response, and whose it is.
    verdict: Option<(Box<str>, Option<Arc<User>>)>,
}

impl Remote {
    pub(super) fn new(policy: RemotePolicy) -> Remote {
        Remote { policy, users: HashMap::new(), order: VecDeque::new(), verdict: None }
    }

    pub(super) fn known(&self, now: Instant, name: &str, response: &str) -> Option<Known<'_>> {
        if let Some((judged, user)) = &self.verdict
            && **judged == *response
        {
            return Some(Known::Judged(user.as_ref()));
        }
        let (user, until) = self.users.get(name)?;
        (*until > now).then(|| user.as_ref().map_or(Known::Nobody, Known::Ha1))
    }

    pub(super) fn learned(&mut self, now: Instant, ask: &AskUser, found: &Found) {
        match found {
            Found::User(user) => self.keep(now, &ask.name, Some(user.clone())),
            Found::Nobody => self.keep(now, &ask.name, None),
            Found::Right(user) => self.verdict = Some((ask.response.clone(), Some(user.clone()))),
            Found::Wrong => self.verdict = Some((ask.response.clone(), None)),
            Found::Unavailable => {}
        }
    }

    /// The request that was judged is done with.
    pub(super) fn forget_verdict(&mut self) {
        self.verdict = None;
    }

    fn keep(&mut self, now: Instant, name: &str, user: Option<Arc<User>>) {
        let keep = if user.is_some() { self.policy.keep } else { self.policy.keep_unknown };
        let until = now + keep;
        while self.order.len() >= self.policy.users_max.max(1) {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            // One that was learnt again since has a later place as well.
            if self.users.get(&oldest).is_some_and(|(_, until)| *until == at) {
                self.users.remove(&oldest);
            }
        }
        self.order.push_back((until, name.into()));
        self.users.insert(name.into(), (user, until));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.users.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str) -> AskUser {
        AskUser {
            name: name.into(),
            realm: "r".into(),
            method: "REGISTER".into(),
            algorithm: Algorithm::Md5,
            nonce: "n".into(),
            uri: "sip:r".into(),
            qop: "auth",
            nc: "00000001".into(),
            cnonce: "c".into(),
            response: "x".into(),
        }
    }

    #[test]
    fn what_was_told_is_remembered_for_its_time_and_never_without_bound() {
        let policy = RemotePolicy {
            keep: Duration::from_secs(60),
            keep_unknown: Duration::from_secs(10),
            users_max: 3,
            waiting_max: 1,
            unavailable: 503,
        };
        let (mut remote, t0) = (Remote::new(policy), Instant::now());
        remote.learned(t0, &ask("a"), &Found::User(Arc::default()));
        remote.learned(t0, &ask("b"), &Found::Nobody);
        assert!(matches!(remote.known(t0, "a", ""), Some(Known::Ha1(_))));
        assert!(matches!(remote.known(t0, "b", ""), Some(Known::Nobody)));
        let later = t0 + Duration::from_secs(20);
        assert!(remote.known(later, "b", "").is_none() && remote.known(later, "a", "").is_some());
        for n in 0..100 {
            remote.learned(later, &ask(&format!("u{n}")), &Found::Nobody);
            assert!(remote.len() <= 3);
        }
        // The same one again and again takes one place.
        for _ in 0..10 {
            remote.learned(later, &ask("a"), &Found::User(Arc::default()));
        }
        assert!(remote.known(later, "a", "").is_some());
        remote.learned(later, &ask("z"), &Found::Wrong);
        assert!(matches!(remote.known(later, "z", "x"), Some(Known::Judged(None))));
        assert!(remote.known(later, "z", "y").is_none(), "good for one answer only");
        remote.forget_verdict();
        assert!(remote.known(later, "z", "x").is_none());
    }
}
