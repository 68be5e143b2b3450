//! Limits of calls by who calls and by what is called: each user's calls, and the calls to a set of
//! prefixes.
//!
//! Users' gates live in `users.rs`; limits of trunks, groups and the node in `table.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use super::admission::{CallLimits, Counted, Gate, Permit, Share, Use};
use super::users::{UserCall, UserGates, UserPlace};
use super::{Reject, RejectCause};

/// Whose calls a limit counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallsBy {
    /// The calls of each registered user, by address of record; only of these where some are named.
    /// The first limit that is about a user counts.
    User(Vec<Box<str>>),
    /// All calls together to numbers that begin so, after translation.
    Prefix(Vec<Box<str>>),
}

/// What a call past a limit gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverCalls {
    /// 503 with Retry-After, in seconds.
    Unavailable(u32),
    /// 403.
    Forbidden,
    Silence,
}

/// One limit as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct CallerLimit {
    pub name: Arc<str>,
    pub by: CallsBy,
    pub limits: CallLimits,
    pub over: OverCalls,
}

/// A limit by prefix, or of a group, of the running table.
#[derive(Debug)]
pub struct NamedLimit {
    pub name: Arc<str>,
    pub limits: CallLimits,
    pub(super) gate: Arc<Gate>,
}

impl NamedLimit {
    /// How much of it is used on this node.
    pub fn used(&self) -> Use {
        self.gate.used()
    }

    /// Sets what this node may use of it.
    pub fn set_share(&self, share: Share) {
        self.gate.set_share(share);
    }

    /// What this node may use of it; `None` where no other node shares it.
    pub fn share(&self) -> Option<Share> {
        self.gate.share()
    }
}

/// Who calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller<'a> {
    /// Address of record, where a registered user calls.
    pub user: Option<&'a str>,
    /// Where the call has waited for room: it waits no longer.
    pub waited: Option<&'a UserPlace>,
}

impl<'a> Caller<'a> {
    /// One that has not waited.
    pub fn of(user: Option<&'a str>) -> Caller<'a> {
        Caller { user, waited: None }
    }
}

/// How a limit stands on this node, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerStatus {
    pub name: Arc<str>,
    /// Calls that it counts now; of all its users.
    pub calls: u64,
    pub refused: u64,
}

#[derive(Debug)]
struct Limit {
    config: CallerLimit,
    /// Of a limit by prefix.
    prefix: Option<Arc<NamedLimit>>,
    refused: Arc<AtomicU64>,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Callers {
    limits: Vec<Limit>,
    /// Handed on from table to table.
    users: Arc<UserGates>,
    uncounted: Arc<AtomicU64>,
}

impl Callers {
    /// The limits of a configuration; counts go over by name.
    pub(super) fn new(limits: Vec<CallerLimit>, previous: Option<&Callers>) -> Callers {
        let make = |config: CallerLimit| {
            let old = previous.and_then(|p| p.limits.iter().find(|l| l.config.name == config.name));
            let prefix = matches!(config.by, CallsBy::Prefix(_)).then(|| {
                let gate = old.and_then(|l| l.prefix.as_ref()).map(|p| p.gate.clone());
                let (name, limits) = (config.name.clone(), config.limits);
                Arc::new(NamedLimit { name, limits, gate: gate.unwrap_or_default() })
            });
            Limit { prefix, refused: old.map(|l| l.refused.clone()).unwrap_or_default(), config }
        };
        Callers {
            limits: limits.into_iter().map(make).collect(),
            users: previous.map(|p| p.users.clone()).unwrap_or_default(),
            uncounted: previous.map(|p| p.uncounted.clone()).unwrap_or_default(),
        }
    }

    /// Counts a call to `number` in every limit that is about it, or refuses it by the first that is
    /// against it. `force` refuses nothing.
    pub(super) fn admit(
        &self,
        by: &Caller<'_>,
        number: &str,
        now_ns: u64,
        force: bool,
    ) -> Result<Permit, Reject> {
        let mut permit = Permit::none();
        let user = self.place(by.user);
        // Who waited and is refused before its turn waits no longer either.
        let mut waited = by.waited;
        let refused = self.limits.iter().enumerate().find_map(|(index, limit)| {
            let limits = limit.config.limits;
            let entered = match (&limit.config.by, &limit.prefix) {
                (CallsBy::User(_), _) => {
                    let (_, place) = user.as_ref().filter(|(at, _)| *at == index)?;
                    let waited = waited.take_if(|waited| *waited == place).is_some();
                    let call = UserCall { now_ns, force, waited };
                    self.users.enter(place, limits, call, &mut permit).map(|counted| {
                        self.uncounted.fetch_add(u64::from(!counted), Ordering::Relaxed);
                    })
                }
                (CallsBy::Prefix(prefixes), prefix) => {
                    let fits = prefixes.iter().any(|p| number.starts_with(&**p));
                    let prefix = prefix.as_ref().filter(|_| fits)?;
                    permit.enter((Counted::Caller(prefix.gate.clone()), limits), now_ns, force)
                }
            };
            entered.err().map(|cause| {
                limit.refused.fetch_add(1, Ordering::Relaxed);
                limit.config.over.reject(cause)
            })
        });
        if let Some(place) = waited {
            self.users.end_wait(place);
        }
        refused.map_or(Ok(permit), Err)
    }

    /// The limit that counts a user's calls, by its number, and the user's place in it.
    fn place(&self, user: Option<&str>) -> Option<(usize, UserPlace)> {
        let user = user?;
        let about = |limit: &Limit| match &limit.config.by {
            CallsBy::User(only) => {
                only.is_empty() || only.iter().any(|o| o.eq_ignore_ascii_case(user))
            }
            CallsBy::Prefix(_) => false,
        };
        let at = self.limits.iter().position(about)?;
        Some((at, UserPlace::new(&self.limits.get(at)?.config.name, user)))
    }

    /// What must be asked for before a call of the user is admitted.
    pub(super) fn lacks(&self, user: &str, now_ns: u64) -> Option<UserPlace> {
        let (at, place) = self.place(Some(user))?;
        let limits = &self.limits.get(at)?.config.limits;
        self.users.lacks(&place, limits, now_ns).then_some(place)
    }

    /// The gates of all users.
    pub(super) fn users(&self) -> &Arc<UserGates> {
        &self.users
    }

    /// The limits by user of that name.
    pub(super) fn user_limits(&self, name: &str) -> Option<CallLimits> {
        let mut by_user = self.limits.iter().filter(|l| matches!(l.config.by, CallsBy::User(_)));
        by_user.find(|l| *l.config.name == *name).map(|l| l.config.limits)
    }

    /// The limits by prefix.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = &Arc<NamedLimit>> + Clone {
        self.limits.iter().filter_map(|l| l.prefix.as_ref())
    }

    /// How every limit stands.
    pub(super) fn status(&self) -> SmallVec<[CallerStatus; 4]> {
        let status = |l: &Limit| CallerStatus {
            name: l.config.name.clone(),
            calls: match &l.prefix {
                Some(prefix) => u64::from(prefix.gate.calls()),
                None => self.users.calls(&l.config.name),
            },
            refused: l.refused.load(Ordering::Relaxed),
        };
        self.limits.iter().map(status).collect()
    }

    /// Calls of users that no gate could be made for.
    pub(super) fn uncounted(&self) -> u64 {
        self.uncounted.load(Ordering::Relaxed)
    }
}

impl OverCalls {
    fn reject(self, cause: RejectCause) -> Reject {
        let (status, reason, retry_after_s) = match self {
            OverCalls::Unavailable(seconds) => {
                // A rate is open again within a second.
                let seconds = if cause == RejectCause::MaxCps { 1 } else { seconds };
                (503, "Too Many Calls", Some(seconds))
            }
            OverCalls::Forbidden | OverCalls::Silence => (403, "Forbidden", None),
        };
        Reject { status, reason, retry_after_s, silent: self == OverCalls::Silence, cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, by: CallsBy, max_calls: u32, over: OverCalls) -> CallerLimit {
        let limits = CallLimits { max_calls: Some(max_calls), max_cps: None };
        CallerLimit { name: name.into(), by, limits, over }
    }

    #[test]
    fn each_user_has_its_own_count_and_named_ones_their_own_limit() {
        let limits = vec![
            limit("boss", CallsBy::User(vec!["boss@x".into()]), 3, OverCalls::Forbidden),
            limit("users", CallsBy::User(vec![]), 1, OverCalls::Unavailable(7)),
        ];
        let callers = Callers::new(limits.clone(), None);
        let call = |callers: &Callers, user| callers.admit(&Caller::of(user), "1", 0, false);
        let first = call(&callers, Some("alice@x")).unwrap();
        let over = call(&callers, Some("Alice@X")).unwrap_err();
        assert_eq!((over.status, over.retry_after_s, over.silent), (503, Some(7), false));
        let _bob = call(&callers, Some("bob@x")).unwrap();
        let _boss = [(); 3].map(|()| call(&callers, Some("boss@x")).unwrap());
        assert_eq!(call(&callers, Some("boss@x")).unwrap_err().status, 403);
        // A trunk is no user.
        let _trunk = [(); 5].map(|()| call(&callers, None).unwrap());
        let status =
            |c: &Callers| c.status().iter().map(|s| (s.calls, s.refused)).collect::<Vec<_>>();
        assert_eq!(status(&callers), [(3, 1), (2, 1)]);
        let reloaded = Callers::new(limits, Some(&callers));
        assert_eq!(status(&reloaded), [(3, 1), (2, 1)]);
        assert!(call(&reloaded, Some("alice@x")).is_err());
        drop(first);
        assert!(call(&reloaded, Some("alice@x")).is_ok());
    }

    #[test]
    fn prefixes_count_together_and_a_refusal_counts_nowhere() {
        let dear = CallsBy::Prefix(vec!["+882".into(), "+883".into()]);
        let callers = Callers::new(
            vec![
                limit("users", CallsBy::User(vec![]), 9, OverCalls::Forbidden),
                limit("dear", dear, 2, OverCalls::Silence),
            ],
            None,
        );
        let call = |number, force| callers.admit(&Caller::of(Some("a@x")), number, 0, force);
        let _held = [call("+8821", false).unwrap(), call("+8839", false).unwrap()];
        let over = call("+88312", false).unwrap_err();
        assert!(over.silent && over.cause == RejectCause::MaxCalls);
        assert_eq!(callers.status()[0].calls, 2, "the refused call left the user's gate");
        let _else = call("+49", false).unwrap();
        let _emergency = call("+8821", true).unwrap();
        assert_eq!((callers.status()[0].calls, callers.status()[1].calls), (4, 3));
    }

    #[test]
    fn the_table_of_users_is_bounded_and_idle_ones_give_way() {
        let users = limit("users", CallsBy::User(vec![]), 1, OverCalls::Forbidden);
        let callers = Callers::new(vec![users], None);
        let _held = callers.admit(&Caller::of(Some("held@x")), "1", 0, false).unwrap();
        let most = crate::routing::users::USERS_MAX;
        for n in 0..most + 10 {
            let _once = callers.admit(&Caller::of(Some(&format!("{n}@x"))), "1", 0, false).unwrap();
        }
        assert!(callers.users.len() <= most);
        assert_eq!(callers.uncounted(), 0);
        assert!(
            callers.admit(&Caller::of(Some("held@x")), "1", 0, false).is_err(),
            "its count is kept"
        );
    }
}
