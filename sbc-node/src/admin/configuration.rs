//! `Config`: show, check, diff, reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::config_server::Config;
use tonic::{Request, Response, Status};

use super::convert;
use crate::config::{self, Problem};
use crate::node::Context;

/// The service.
pub(super) struct ConfigService(pub(super) Arc<Context>);

/// Reads a configuration away from the runtime's threads: prefix files may be large.
async fn load(path: PathBuf, text: String) -> Result<Result<config::Config, Vec<Problem>>, Status> {
    let work = move || {
        if text.is_empty() {
            config::load(&path)
        } else {
            config::check(&text, path.parent().unwrap_or(Path::new(".")))
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
}

#[tonic::async_trait]
impl Config for ConfigService {
    async fn show(
        &self,
        _: Request<pb::ShowConfigRequest>,
    ) -> Result<Response<pb::ShowConfigReply>, Status> {
        let running = self.0.running.load_full();
        Ok(Response::new(pb::ShowConfigReply {
            toml: running.config.document.to_string(),
            path: running.path.display().to_string(),
            loaded_ms: running.loaded_ms,
        }))
    }

    async fn check(
        &self,
        request: Request<pb::CheckConfigRequest>,
    ) -> Result<Response<pb::CheckConfigReply>, Status> {
        let pb::CheckConfigRequest { path, toml } = request.into_inner();
        let path = match path.is_empty() {
            true => self.0.running.load().path.clone(),
            false => PathBuf::from(path),
        };
        let problems = load(path, toml).await?.err().unwrap_or_default();
        Ok(Response::new(pb::CheckConfigReply {
            ok: problems.is_empty(),
            problems: convert::problems(&problems),
        }))
    }

    async fn diff(
        &self,
        _: Request<pb::DiffConfigRequest>,
    ) -> Result<Response<pb::DiffConfigReply>, Status> {
        let running = self.0.running.load_full();
        let reply = match load(running.path.clone(), String::new()).await? {
            Ok(new) => pb::DiffConfigReply {
                ok: true,
                problems: Vec::new(),
                changes: config::diff(&running.config, &new)
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            },
            Err(problems) => pb::DiffConfigReply {
                ok: false,
                problems: convert::problems(&problems),
                changes: Vec::new(),
            },
        };
        Ok(Response::new(reply))
    }

    async fn reload(
        &self,
        _: Request<pb::ReloadConfigRequest>,
    ) -> Result<Response<pb::ReloadConfigReply>, Status> {
        let outcome = self.0.reload().await;
        outcome.log();
        Ok(Response::new(pb::ReloadConfigReply {
            applied: outcome.applied,
            problems: convert::problems(&outcome.problems),
            changes: outcome.changes,
        }))
    }
}
