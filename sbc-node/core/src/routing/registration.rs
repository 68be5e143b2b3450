//! Registration with a trunk: what is configured, and what has become of it, shared by all shards.
//!
//! Who registers, when and how never lives here (`core/registrant.rs`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// An address of record that the SBC registers with a trunk (RFC 3261 §10.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterConfig {
    /// `user@domain`: what To and From say.
    pub aor: Arc<str>,
    /// Host, with port where there is one, of the Request-URI. Requests go to the trunk's peers.
    pub registrar: Arc<str>,
    /// Asked for; the answer decides.
    pub expires: Duration,
    /// User part of our Contact.
    pub contact_user: Arc<str>,
    /// Requests that name our Contact come from this trunk, whatever their source: the Contact has
    /// a parameter that nobody can guess.
    pub match_contact: bool,
    /// Waiting time after the first failure; doubled by each further one (RFC 5626 §4.5).
    pub retry: Duration,
    pub retry_max: Duration,
}

impl RegisterConfig {
    /// With the defaults of `docs/configuration.md`.
    pub fn new(aor: &str) -> RegisterConfig {
        let (user, domain) = aor.split_once('@').unwrap_or(("", aor));
        RegisterConfig {
            aor: aor.into(),
            registrar: domain.into(),
            expires: Duration::from_secs(3_600),
            contact_user: user.into(),
            match_contact: false,
            retry: Duration::from_secs(10),
            retry_max: Duration::from_secs(600),
        }
    }
}

/// How a registration stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RegistrationState {
    /// Another node does it, or nobody has begun.
    #[default]
    Standby,
    /// Asked for the first time, or again after a loss.
    Trying,
    Registered,
    /// The last attempt failed; the next comes by itself.
    Failed,
    /// Taken back: the node drains or the operator removed it.
    Withdrawn,
}

impl RegistrationState {
    /// The word that operators read.
    pub fn as_str(self) -> &'static str {
        match self {
            RegistrationState::Standby => "standby",
            RegistrationState::Trying => "trying",
            RegistrationState::Registered => "registered",
            RegistrationState::Failed => "failed",
            RegistrationState::Withdrawn => "withdrawn",
        }
    }
}

/// A registration as `sbcctl trunks list` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrationStatus {
    pub state: RegistrationState,
    /// Who answered last.
    pub registrar: Option<SocketAddr>,
    pub expires: Option<Instant>,
    /// The last failure: a status, 408 for silence, 503 where nobody could be reached.
    pub failure: Option<u16>,
    /// Since the start.
    pub accepted: u64,
    pub failed: u64,
}

/// What is known of one registration; told by the one shard that does it, read by all.
#[derive(Debug, Default)]
pub struct Registration(Mutex<RegistrationStatus>);

impl Registration {
    pub fn status(&self) -> RegistrationStatus {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Changes it; gives back the state of before.
    pub fn change(&self, change: impl FnOnce(&mut RegistrationStatus)) -> RegistrationState {
        let mut status = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let before = status.state;
        change(&mut status);
        before
    }
}
