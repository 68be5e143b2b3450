//! `Users`: who may register, listed; those of the file of users also added, changed and taken out.

use std::sync::Arc;

use hashbrown::HashMap;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::users_server::Users;
use tonic::{Request, Response, Status};

use crate::node::{Context, UsersError};
use crate::users::file::{Edit, EditError, Row};

/// Users of a list unless asked for fewer.
const ROWS_MAX: usize = 10_000;

/// The service.
pub(super) struct UsersService(pub(super) Arc<Context>);

fn status(error: &UsersError) -> Status {
    match error {
        UsersError::Edit(EditError::Taken(_)) => Status::already_exists(error.to_string()),
        UsersError::Edit(EditError::Unknown(_)) => Status::not_found(error.to_string()),
        UsersError::Edit(EditError::Io(..)) | UsersError::Failed(_) => {
            Status::internal(error.to_string())
        }
        UsersError::Edit(EditError::Bad(_)) => Status::invalid_argument(error.to_string()),
        UsersError::NoRegistrar | UsersError::NoFile => {
            Status::failed_precondition(error.to_string())
        }
    }
}

#[tonic::async_trait]
impl Users for UsersService {
    async fn list(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersReply>, Status> {
        let pb::ListUsersRequest { limit, filter } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(0) | Err(_) => ROWS_MAX,
            Ok(limit) => limit.min(ROWS_MAX),
        };
        let running = self.0.running.load_full();
        let (Some(registrar), Some(source)) = (&running.config.registrar, &running.config.users)
        else {
            return Err(status(&UsersError::NoRegistrar));
        };
        let users = &registrar.users;
        let wanted = |name: &str| name.contains(filter.as_str());
        let mut names: Vec<&str> = users.iter().map(|(n, _)| n).filter(|n| wanted(n)).collect();
        names.sort_unstable();
        let total = u64::try_from(names.len()).unwrap_or(u64::MAX);
        names.truncate(limit);
        let mut aliases: HashMap<&str, Vec<String>> = HashMap::new();
        for (alias, aor) in users.aliases() {
            aliases.entry(aor).or_default().push(alias.to_owned());
        }
        let shown = names.into_iter().filter_map(|name| {
            let user = users.get(name)?;
            let mut aliases: Vec<String> = user
                .aors
                .iter()
                .flat_map(|aor| aliases.get(&**aor).into_iter().flatten().cloned())
                .collect();
            aliases.sort_unstable();
            let has = [("MD5", user.md5.is_some()), ("SHA-256", user.sha256.is_some())];
            Some(pb::UserEntry {
                name: name.to_owned(),
                addresses: user.aors.iter().map(|a| a.to_string()).collect(),
                aliases,
                algorithms: has.iter().filter(|(_, has)| *has).map(|(a, _)| (*a).into()).collect(),
                fixed: source.fixed.get(name).is_some(),
            })
        });
        Ok(Response::new(pb::ListUsersReply {
            realm: source.realm.clone().unwrap_or_default(),
            total,
            users: shown.collect(),
        }))
    }

    async fn put(
        &self,
        request: Request<pb::PutUserRequest>,
    ) -> Result<Response<pb::PutUserReply>, Status> {
        let user = request.into_inner();
        let running = self.0.running.load_full();
        let source = running.config.users.as_ref();
        let source = source.ok_or_else(|| status(&UsersError::NoRegistrar))?;
        let given = |text: String| Some(text).filter(|t| !t.is_empty());
        let row = Row {
            name: user.name,
            realm: source.realm.clone().or(given(user.realm)).unwrap_or_default(),
            md5: given(user.ha1_md5),
            sha256: given(user.ha1_sha256),
            addresses: user.addresses,
            aliases: user.aliases,
        };
        let name = row.name.clone();
        let edit = if user.create { Edit::Add(row) } else { Edit::Passwd(row) };
        self.0.edit_users(edit).await.map_err(|e| status(&e))?;
        tracing::info!(user = name, create = user.create, "a user was changed by an operator");
        Ok(Response::new(pb::PutUserReply {}))
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveUserRequest>,
    ) -> Result<Response<pb::RemoveUserReply>, Status> {
        let name = request.into_inner().name;
        self.0.edit_users(Edit::Remove(name.clone())).await.map_err(|e| status(&e))?;
        tracing::info!(user = name, "a user was removed by an operator");
        Ok(Response::new(pb::RemoveUserReply {}))
    }
}
