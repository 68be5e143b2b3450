//! `Registrations`: list, show, remove, import, export.

use std::pin::Pin;
use std::sync::Arc;

use sbc_core::media::Anchor;
use sbc_core::registrar::{AorRecord, BindingRecord, Registration};
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::registrations_server::Registrations;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::node::Context;
use crate::telemetry::time::unix_ms;

/// Users of a list unless asked for fewer.
const ROWS_MAX: usize = 10_000;
/// Places of a shard's table that are exported at a time, and rows that may wait for the client.
const PAGE: usize = 2_000;
const EXPORTED_MAX: usize = 1_024;

/// The service.
pub(super) struct RegistrationsService(pub(super) Arc<Context>);

impl RegistrationsService {
    fn convert(&self, shard: usize, registration: Registration) -> pb::Registration {
        let contacts = registration.contacts.into_iter().map(|c| pb::RegisteredContact {
            uri: c.uri.into(),
            path: c.path.into(),
            instance: c.instance.into(),
            reg_id: c.reg_id,
            q: c.q.into(),
            natted: c.natted,
            interface: self.0.interface_name(c.interface.0),
            transport: c.transport.to_string(),
            remote: c.remote.to_string(),
            connected: c.connected,
            missed: c.missed.into(),
            expires_s: c.expires_s,
            age_s: c.age_s,
        });
        pb::Registration {
            aor: registration.aor.into(),
            shard: u32::try_from(shard).unwrap_or(u32::MAX),
            contacts: contacts.collect(),
        }
    }

    /// From an export; `None` when it makes no sense here.
    fn record(&self, registration: &pb::Registration, now_ms: u64) -> Option<AorRecord> {
        let running = self.0.running.load_full();
        let policy = running.config.registrar.as_ref()?.policy.clone();
        let (user, domain) = registration.aor.rsplit_once('@')?;
        if user.is_empty() || !policy.serves(domain) {
            return None;
        }
        let mut bindings = Vec::new();
        for c in &registration.contacts {
            let interface = running.core.interfaces.iter().find(|i| *i.name == *c.interface)?;
            let transport = interface
                .listeners
                .iter()
                .find(|l| l.transport.to_string() == c.transport && !l.retired)?;
            let uri = sbc_core::sip::UriRef::parse(&c.uri).ok().filter(|u| u.is_sip());
            uri?;
            bindings.push(BindingRecord {
                contact: c.uri.as_str().into(),
                // No request of the device is older than what was brought here.
                call_id: "import".into(),
                cseq: 0,
                path: c.path.as_str().into(),
                instance: c.instance.as_str().into(),
                reg_id: c.reg_id,
                q: u16::try_from(c.q.min(1_000)).unwrap_or(1_000),
                methods: 0,
                natted: c.natted,
                interface: interface.id,
                transport: transport.transport,
                local: transport.local,
                remote: c.remote.parse().ok()?,
                conn: None,
                flow_only: false,
                good_until_ms: now_ms + u64::from(c.expires_s) * 1_000,
                // The core registrar, if there is one, hears of it with the next REGISTER.
                upstream: None,
            });
        }
        let aor = format!("{user}@{}", domain.to_ascii_lowercase()).into();
        Some(AorRecord { aor, bindings, gone: Vec::new() })
    }
}

#[tonic::async_trait]
impl Registrations for RegistrationsService {
    async fn list(
        &self,
        request: Request<pb::ListRegistrationsRequest>,
    ) -> Result<Response<pb::ListRegistrationsReply>, Status> {
        let pb::ListRegistrationsRequest { limit, filter } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(0) | Err(_) => ROWS_MAX,
            Ok(limit) => limit.min(ROWS_MAX),
        };
        let filter: Arc<str> = filter.into();
        let answers = self
            .0
            .ask(move |core, now, _| {
                core.registrar().map(|r| r.registrations(now, &filter, limit)).unwrap_or_default()
            })
            .await;
        let mut reply = pb::ListRegistrationsReply::default();
        for (shard, (total, found)) in answers {
            reply.total += u64::try_from(total).unwrap_or(0);
            reply.registrations.extend(found.into_iter().map(|r| self.convert(shard, r)));
        }
        reply.registrations.sort_by(|a, b| a.aor.cmp(&b.aor));
        reply.registrations.truncate(limit);
        Ok(Response::new(reply))
    }

    async fn show(
        &self,
        request: Request<pb::ShowRegistrationRequest>,
    ) -> Result<Response<pb::Registration>, Status> {
        let aor = request.into_inner().aor;
        let asked = aor.clone();
        let answers = self
            .0
            .ask(move |core, now, _| core.registrar().and_then(|r| r.registration(now, &asked)))
            .await;
        let found = answers.into_iter().find_map(|(shard, found)| Some((shard, found?)));
        match found {
            Some((shard, found)) => Ok(Response::new(self.convert(shard, found))),
            None => Err(Status::not_found(format!("{aor} is not registered"))),
        }
    }

    async fn remove(
        &self,
        request: Request<pb::RemoveRegistrationRequest>,
    ) -> Result<Response<pb::RemoveRegistrationReply>, Status> {
        let pb::RemoveRegistrationRequest { aor, contact } = request.into_inner();
        let asked = aor.clone();
        let answers = self
            .0
            .ask(move |core, now, _| {
                core.registrar().map_or(0, |r| r.remove(now, &asked, &contact))
            })
            .await;
        let removed: usize = answers.iter().map(|(_, count)| count).sum();
        if removed == 0 {
            return Err(Status::not_found(format!("{aor} has no such registration")));
        }
        tracing::info!(removed, "registrations removed by an operator");
        let removed = u32::try_from(removed).unwrap_or(u32::MAX);
        Ok(Response::new(pb::RemoveRegistrationReply { removed }))
    }

    async fn import(
        &self,
        request: Request<pb::ImportRegistrationsRequest>,
    ) -> Result<Response<pb::ImportRegistrationsReply>, Status> {
        let mut reply = pb::ImportRegistrationsReply::default();
        let now_ms = unix_ms();
        let mut records = Vec::new();
        for registration in request.into_inner().registrations {
            match self.record(&registration, now_ms) {
                Some(record) => records.push(record),
                None => reply.refused += 1,
            }
        }
        let records: Arc<[AorRecord]> = records.into();
        // Every shard takes what is its own.
        let answers = self
            .0
            .ask(move |core, now, _| {
                let (mut added, mut refused) = (0, 0);
                for record in records.iter().filter(|r| core.owns_aor(&r.aor)).collect::<Vec<_>>() {
                    match core.registrar().map(|r| r.import(now, record)) {
                        Some(Ok(count)) => added += count,
                        Some(Err(_)) | None => refused += 1,
                    }
                }
                (added, refused)
            })
            .await;
        for (_, (added, refused)) in answers {
            reply.added += u32::try_from(added).unwrap_or(u32::MAX);
            reply.refused += refused;
        }
        Ok(Response::new(reply))
    }

    type ExportStream =
        Pin<Box<dyn Stream<Item = Result<pb::Registration, Status>> + Send + 'static>>;

    async fn export(
        &self,
        _: Request<pb::ExportRegistrationsRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let (sender, receiver) = mpsc::channel(EXPORTED_MAX);
        tokio::spawn(export(RegistrationsService(Arc::clone(&self.0)), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Every user of every shard, a few of each at a time: shards have other things to do.
async fn export(
    service: RegistrationsService,
    sender: mpsc::Sender<Result<pb::Registration, Status>>,
) {
    let mut from = Some(0);
    while let Some(place) = from {
        let page = move |core: &mut sbc_core::core::Core, now, _: &mut dyn Anchor| {
            core.registrar().map(|r| r.page(now, place, PAGE)).unwrap_or_default()
        };
        let answers = service.0.ask(page).await;
        if answers.len() < service.0.shards.len() {
            let lost = Status::unavailable("a shard did not answer: the export is not whole");
            let _ = sender.send(Err(lost)).await;
            return;
        }
        from = None;
        for (shard, (next, page)) in answers {
            from = from.max(next);
            for registration in page {
                let row = service.convert(shard, registration);
                if sender.send(Ok(row)).await.is_err() {
                    return;
                }
            }
        }
    }
}
