//! Users of a running node: its file changed and taken over at once, without the rest of the
//! configuration.

use std::sync::Arc;

use super::context::Context;
use super::reload::Running;
use crate::users::file::{Edit, EditError, change};
use crate::users::{Loaded, Source};

/// Why users were not changed.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("nobody registers here: there is no [registrar]")]
    NoRegistrar,
    #[error("the configuration has no users-file")]
    NoFile,
    #[error("{0}")]
    Edit(#[from] EditError),
    #[error("{0}")]
    Failed(String),
}

impl Context {
    /// Changes the file of users and gives the shards what it holds. Nothing is written that would not
    /// load.
    ///
    /// # Errors
    /// Why neither the file nor the users in force changed.
    pub async fn edit_users(&self, edit: Edit) -> Result<(), UsersError> {
        let _one_at_a_time = self.reloading.lock().await;
        let source = self.running.load().config.users.clone().ok_or(UsersError::NoRegistrar)?;
        let path = source.file.clone().ok_or(UsersError::NoFile)?;
        let work = move || -> Result<Loaded, EditError> {
            let mut loaded = None;
            change(&path, &edit, |text| load(&source, text).map(|all| loaded = Some(all)))?;
            loaded.ok_or_else(|| EditError::Bad("nothing was loaded".to_owned()))
        };
        let loaded = tokio::task::spawn_blocking(work).await;
        let loaded = loaded.map_err(|e| UsersError::Failed(e.to_string()))??;
        self.take_users(loaded).await;
        Ok(())
    }

    async fn take_users(&self, loaded: Loaded) {
        let running = self.running.load_full();
        let mut config = running.config.clone();
        let Some(registrar) = &mut config.registrar else { return };
        let mut policy = (*registrar.policy).clone();
        if let Some(auth) = &mut policy.auth {
            auth.algorithms = loaded.algorithms;
        }
        registrar.policy = Arc::new(policy);
        registrar.users = Arc::new(loaded.users);
        let mut core = (*running.core).clone();
        core.registrar = Some(running.keys.given_to(registrar.clone()));
        let core = Arc::new(core);
        self.give(&core, Vec::new()).await;
        self.running.store(Arc::new(Running { config, core, ..(*running).clone() }));
    }
}

fn load(source: &Source, text: &str) -> Result<Loaded, String> {
    source.with(text).map_err(|faults| {
        let told: Vec<String> = faults.iter().take(3).map(ToString::to_string).collect();
        told.join("; ")
    })
}
