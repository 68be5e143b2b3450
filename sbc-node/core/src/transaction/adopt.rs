//! Transactions that move between nodes: an INVITE without a final response that another node took or
//! sent is carried on here, and one that is another's from now on is dropped without a word.

use std::time::Instant;

use bytes::Bytes;

use super::{ClientId, ClientRequest, ServerId, TableFull, TransactionLayer};
use crate::ids::Branch;
use crate::net::Flow;
use crate::sip::Message;

/// The server transaction of an INVITE that another node took.
#[derive(Clone, Debug)]
pub struct AdoptedServer {
    /// How the INVITE came. A connection died with its node: without `conn` the response goes by a
    /// new one, to where RFC 3261 §18.2.2 says.
    pub flow: Flow,
    pub invite: Message,
    /// The last provisional response; empty if none was sent.
    pub provisional: Bytes,
}

impl TransactionLayer {
    /// Carries on the INVITE server transaction of another node: repeats of the INVITE are absorbed,
    /// a CANCEL finds it. `None` when the table is full, or when it is here already.
    pub fn adopt_server(&mut self, now: Instant, from: AdoptedServer) -> Option<ServerId> {
        if self.servers.is_full() || self.is_retransmission(&from.invite) {
            return None;
        }
        self.insert_adopted_server(now, from)
    }

    /// Carries on the INVITE client transaction of another node. One that had a provisional response
    /// waits for what comes next; one that had none sends its INVITE again.
    ///
    /// # Errors
    ///
    /// [`TableFull`]: nothing was done.
    pub fn adopt_client(
        &mut self,
        now: Instant,
        request: ClientRequest,
        proceeding: bool,
    ) -> Result<ClientId, TableFull> {
        if !proceeding {
            return self.send_request(now, request);
        }
        if self.clients.is_full() {
            self.stats.refused_clients += 1;
            return Err(TableFull);
        }
        let ClientRequest { owner, branch, method, dest, data, .. } = request;
        let (index, generation) = self.insert_proceeding(owner, branch, method, dest, data);
        Ok(ClientId { index, generation })
    }

    /// The last response of a server transaction that has no final one; empty if none was sent.
    pub fn last_response(&mut self, id: ServerId) -> Bytes {
        let found = self.servers.check(id.index, id.generation);
        let server = found.and_then(|index| self.servers.get(index));
        server.map(|(_, server)| server.last_response()).unwrap_or_default()
    }

    /// The request of a client transaction that has no final response, as it was sent.
    pub fn request_of(&mut self, id: ClientId) -> Option<Bytes> {
        let index = self.clients.check(id.index, id.generation)?;
        let (_, client) = self.clients.get(index)?;
        client.request()
    }

    /// Drops a client transaction: its responses are another node's to handle.
    pub fn leave(&mut self, id: ClientId) {
        if let Some(index) = self.clients.check(id.index, id.generation) {
            self.remove_client(index);
        }
    }

    /// Whether a response with this branch has a client transaction here.
    pub fn knows_branch(&self, branch: Branch) -> bool {
        [false, true].iter().any(|cancel| self.by_branch.contains_key(&(branch, *cancel)))
    }
}
