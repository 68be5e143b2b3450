//! The registrar: which user is reached where (RFC 3261 §10, Path RFC 3327, Outbound RFC 5626,
//! GRUU RFC 5627, Service-Route RFC 3608), and the digest check of users' requests.
//!
//! Sans-IO and owned by one shard: a REGISTER comes as a parsed message, the answer goes out as a
//! status with headers, what has to be replicated or pinged comes out of [`Registrar::poll`].
//! Transactions, sockets and the form of the configuration never live here.

mod aor;
mod auth;
mod binding;
mod flows;
mod gruu;
mod learn;
mod nat;
mod policy;
mod register;
mod remote;
mod table;
mod upstream;
mod view;

pub use aor::aor_of;
pub use auth::{Access, Guard, Replays, User, Users};
pub use binding::{AorRecord, AorState, BindingRecord, Gone, Held, Reach, Reached, contact_key};
pub use flows::Flows;
pub use gruu::{Device, GruuKey, Invalid};
pub use nat::is_natted;
pub use policy::{AuthPolicy, Keepalive, KeepaliveKind, Overflow, RegistrarPolicy};
pub use register::Answer;
pub use remote::{AskUser, Found, RemotePolicy};
pub use table::{Bindings, Change, Changed, Due, Full, Ping, Stats};
pub use upstream::{Asked, Judged, Upstream, UpstreamMode, UpstreamPolicy};
pub use view::{Contact, Registration};

use std::sync::Arc;
use std::time::Instant;

use auth::Moment;
use remote::Remote;
use smallvec::SmallVec;

use crate::net::{ConnId, Flow};
use crate::sip::{Message, Method, UriRef};

/// The registrar of one shard.
pub struct Registrar {
    policy: Arc<RegistrarPolicy>,
    users: Arc<Users>,
    guard: Option<Guard>,
    /// What another system told of users; `None` where there is none.
    remote: Option<Remote>,
    replays: Arc<Replays>,
    bindings: Bindings,
}

impl Registrar {
    /// Without bindings. `unix_ms` is the wall clock at `now`; `replays` is shared by all shards.
    pub fn new(
        policy: Arc<RegistrarPolicy>,
        users: Arc<Users>,
        replays: Arc<Replays>,
        now: Instant,
        unix_ms: u64,
    ) -> Self {
        let bindings = Bindings::new(now, unix_ms);
        let mut new = Registrar { policy, users, guard: None, remote: None, replays, bindings };
        new.take_policy();
        new
    }

    /// Takes another configuration; bindings stay.
    pub fn configure(&mut self, policy: Arc<RegistrarPolicy>, users: Arc<Users>) {
        self.policy = policy;
        self.users = users;
        self.take_policy();
    }

    fn take_policy(&mut self) {
        let users = &self.users;
        let replays = &self.replays;
        let guard = |auth| Guard::new(auth, users.clone(), replays.clone());
        self.guard = self.policy.auth.as_ref().map(guard);
        // What was told stays, unless the way of asking is another.
        let remote = self.policy.auth.as_ref().and_then(|auth| auth.remote);
        if self.remote.as_ref().map(|r| r.policy) != remote {
            self.remote = remote.map(Remote::new);
        }
        self.bindings.max = self.policy.bindings_max;
        self.bindings.set_keepalive(self.policy.keepalive);
        self.bindings.store_ahead = self.policy.store_ahead;
        self.bindings.replicated = self.policy.replicated;
    }

    pub fn policy(&self) -> &RegistrarPolicy {
        &self.policy
    }

    /// The table, for lookups, keepalive outcomes and snapshots.
    pub fn bindings(&mut self) -> &mut Bindings {
        &mut self.bindings
    }

    /// A REGISTER: the whole answer. `now_s` is Unix time, `salt` fresh random.
    pub fn register(
        &mut self,
        now: Instant,
        now_s: u64,
        salt: u64,
        flow: &Flow,
        message: &Message,
    ) -> Answer {
        let access = match self.access(flow, message, Moment { now, now_s, salt }) {
            Ok(access) => access,
            Err(answer) => return answer,
        };
        let (table, policy, users) = (&mut self.bindings, &*self.policy, &*self.users);
        register::register(table, policy, users, now, salt, flow, message, &access, None)
    }

    /// The address of record in To, when it is nobody's.
    pub fn unknown<'a>(&self, message: &'a Message) -> Option<&'a str> {
        let to = message.to().ok()?.uri().ok()?;
        let aor = aor_of(&to)?;
        let user = to.user()?;
        // Of users elsewhere nobody knows here whether there are such.
        let all = self.remote.is_none() && !self.users.is_empty();
        (all && !self.users.knows(&aor)).then_some(user)
    }

    /// Who sends a request outside dialogs, of any method but REGISTER. A user must call by a name
    /// of its own: From is checked (403).
    ///
    /// # Errors
    /// The answer to send.
    pub fn admit(
        &self,
        flow: &Flow,
        message: &Message,
        now: Instant,
        now_s: u64,
        salt: u64,
    ) -> Result<Access, Answer> {
        let access = self.access(flow, message, Moment { now, now_s, salt })?;
        if access != Access::Anyone {
            let from = message.from().ok().and_then(|f| f.uri().ok());
            let aor = from.as_ref().and_then(aor_of).unwrap_or_default();
            let anonymous = from.is_some_and(|f| f.host().eq_ignore_ascii_case(ANONYMOUS));
            if !anonymous && !access.owns(&self.users, self.users.resolve(&aor)) {
                return Err(Answer::new(403, "From Is Not Yours"));
            }
        }
        Ok(access)
    }

    /// Whom another system must be asked for before a request can be judged.
    pub fn lacks(
        &self,
        flow: &Flow,
        message: &Message,
        now: Instant,
        now_s: u64,
    ) -> Option<AskUser> {
        let (guard, remote) = (self.guard.as_ref()?, self.remote.as_ref()?);
        guard.lacks(message, flow, remote, Moment { now, now_s, salt: 0 })
    }

    /// How another system is asked, where there is one.
    pub fn remote(&self) -> Option<RemotePolicy> {
        self.remote.as_ref().map(|r| r.policy)
    }

    /// What the other system said. Judge the request now, and then [`Registrar::judged`].
    pub fn learned(&mut self, now: Instant, ask: &AskUser, found: &Found) {
        let Some(remote) = &mut self.remote else { return };
        let (Found::User(user) | Found::Right(user)) = found else {
            return remote.learned(now, ask, found);
        };
        let mut user = (**user).clone();
        if user.aors.is_empty() {
            let domains = self.policy.domains.iter();
            user.aors = domains.map(|d| format!("{}@{d}", ask.name).into()).collect();
        }
        let found = match found {
            Found::User(_) => Found::User(Arc::new(user)),
            _ => Found::Right(Arc::new(user)),
        };
        remote.learned(now, ask, &found);
    }

    /// The request that was asked for is done with.
    pub fn judged(&mut self) {
        if let Some(remote) = &mut self.remote {
            remote.forget_verdict();
        }
    }

    fn access(&self, flow: &Flow, message: &Message, at: Moment) -> Result<Access, Answer> {
        match &self.guard {
            Some(guard) => guard.check(message, flow, self.remote.as_ref(), at),
            None => Ok(Access::Anyone),
        }
    }

    /// Whom a request names: `user` of its Request-URI as routing has it after number translation,
    /// `uri` for the rest. A GRUU names one device (RFC 5627 §5.1).
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn named(&self, user: &str, uri: &UriRef<'_>) -> Result<(String, Device), Invalid> {
        if let Some(opened) = self.policy.gruu_key.open(user) {
            return opened.map(|(aor, print)| (aor, Device::Temporary(print)));
        }
        if let Some(behind) = self.behind(uri) {
            return Ok(behind);
        }
        let device = match uri.params().get("gr") {
            None | Some("") => Device::Any,
            Some(instance) => Device::Instance(instance.to_owned()),
        };
        Ok((self.aor(user, uri.host()), device))
    }

    /// Where the user of a Request-URI is reached, best first; empty when offline (480) or
    /// unknown.
    pub fn locate(
        &self,
        now: Instant,
        uri: &UriRef<'_>,
        method: &Method,
    ) -> SmallVec<[Reached; 2]> {
        match self.named(&uri.user_decoded(), uri) {
            Ok((aor, device)) => self.locate_aor(now, &aor, method, &device),
            Err(Invalid) => SmallVec::new(),
        }
    }

    /// The same by user and host, as routing has them after number translation.
    pub fn locate_user(
        &self,
        now: Instant,
        user: &str,
        host: &str,
        method: &Method,
    ) -> SmallVec<[Reached; 2]> {
        let aor = register::called(&self.users, user, host);
        self.bindings.lookup(now, &aor, register::method_bit(method), &Device::Any)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.bindings.deadline()
    }

    /// The address of record that a user part and host stand for.
    pub fn aor(&self, user: &str, host: &str) -> String {
        let host = if self.policy.serves(host) {
            host
        } else {
            self.policy.domains.first().map_or(host, |d| d)
        };
        register::called(&self.users, user, host)
    }

    /// The same by address of record, for a method and a device.
    pub fn locate_aor(
        &self,
        now: Instant,
        aor: &str,
        method: &Method,
        device: &Device,
    ) -> SmallVec<[Reached; 2]> {
        self.bindings.lookup(now, aor, register::method_bit(method), device)
    }

    pub fn conn_closed(&mut self, now: Instant, conn: ConnId) {
        self.bindings.conn_closed(now, conn);
    }
}

/// The host of who withholds a name (RFC 3323 §4.1.1.3).
pub(crate) const ANONYMOUS: &str = "anonymous.invalid";

#[cfg(test)]
mod tests;
