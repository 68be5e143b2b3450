//! Where the registrar's users come from: the configuration itself, a file of users, another
//! system (`lookup.rs`): a database (`sql.rs`) or servers of RADIUS (`radius/`).
//!
//! ```text
//! [[user]] ──────────────▶ Source ── load ──▶ Loaded ──▶ the shards' registrars
//! users-file ─ file.rs ──▶   │
//!      ▲ written anew by `sbcctl users`, which never sends a password
//! ```

pub mod file;
pub mod lookup;
pub mod radius;
pub mod sql;
mod sql_tls;

use std::fmt;
use std::path::PathBuf;

use sbc_core::digest::Algorithm;
use sbc_core::registrar::{User, Users};

use file::{Fault, Row};

/// What is needed to build the users anew without the configuration file. No `Debug` that shows
/// credentials.
#[derive(Clone)]
pub struct Source {
    /// Those of `[[user]]`.
    pub fixed: Users,
    pub file: Option<PathBuf>,
    /// Domains served, in lower case; the first stands for a user part alone.
    pub domains: Vec<Box<str>>,
    /// What the HA1 are made with; `None` without authentication.
    pub realm: Option<String>,
    /// As configured; empty offers what some user has an HA1 for.
    pub algorithms: Vec<Algorithm>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The users, and what their challenges offer.
pub struct Loaded {
    pub users: Users,
    pub algorithms: Vec<Algorithm>,
}

impl Source {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// Everything that is wrong with it; line 0 when it cannot be read.
    pub fn load(&self) -> Result<Loaded, Vec<Fault>> {
        let Some(path) = &self.file else { return self.with("") };
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|e| vec![Fault::whole(format!("{}: {e}", path.display()))])?;
        self.with(&text)
    }

    /// As [`Source::load`] with this text as the file's.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn with(&self, text: &str) -> Result<Loaded, Vec<Fault>> {
        let (rows, mut faults) = file::rows(text);
        let mut users = self.fixed.clone();
        for (line, row) in rows {
            if let Err(message) = self.add(&mut users, row) {
                faults.push(Fault { line, message });
            }
        }
        if !faults.is_empty() {
            faults.sort_by_key(|f| f.line);
            return Err(faults);
        }
        let algorithms = self.offered(&users);
        Ok(Loaded { users, algorithms })
    }

    fn add(&self, users: &mut Users, row: Row) -> Result<(), String> {
        if let Some(realm) = self.realm.as_ref().filter(|realm| **realm != row.realm) {
            return Err(format!(
                "\"{}\" is of the realm \"{}\", not \"{realm}\"",
                row.name, row.realm
            ));
        }
        let aors: Vec<Box<str>> = match row.addresses.is_empty() {
            true => self.domains.iter().map(|d| format!("{}@{d}", row.name).into()).collect(),
            false => self.addresses(&row.addresses)?,
        };
        for alias in self.addresses(&row.aliases)? {
            let first = aors.first().map_or("", AsRef::as_ref);
            if !users.alias(&alias, first) {
                return Err(format!("the alias \"{alias}\" is taken"));
            }
        }
        let text = |hex: Option<String>| hex.map(String::into_boxed_str);
        let user = User { md5: text(row.md5), sha256: text(row.sha256), sha512_256: None, aors };
        match users.insert(&row.name, user) {
            true => Ok(()),
            false => Err(format!("the user \"{}\" is there twice", row.name)),
        }
    }

    /// Given as `user@domain` or as a user at the first domain.
    fn addresses(&self, texts: &[String]) -> Result<Vec<Box<str>>, String> {
        let first = self.domains.first().map_or("", |d| d);
        let full = |text: &String| {
            let (user, host) = text.split_once('@').unwrap_or((text, first));
            let served = self.domains.iter().any(|d| d.eq_ignore_ascii_case(host));
            match served && !user.is_empty() {
                true => Ok(format!("{user}@{}", host.to_ascii_lowercase()).into()),
                false => Err(format!("\"{text}\" is not of a domain served")),
            }
        };
        texts.iter().map(full).collect()
    }

    /// Unless configured, only what some user can answer: there are phones that give up at the first
    /// challenge that they do not know, though one that they do know stands below it.
    fn offered(&self, users: &Users) -> Vec<Algorithm> {
        if !self.algorithms.is_empty() {
            return self.algorithms.clone();
        }
        let sha256 = users.iter().any(|(_, u)| u.sha256.is_some());
        let md5 = users.iter().any(|(_, u)| u.md5.is_some()) || users.is_empty();
        let all = [(Algorithm::Sha256, sha256), (Algorithm::Md5, md5)];
        all.into_iter().filter(|(_, any)| *any).map(|(a, _)| a).collect()
    }
}
