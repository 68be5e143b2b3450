//! The file form of the tables: a magic word, then length-prefixed protobuf: one header, the rows
//! in a fixed order, an empty frame, the digest of the rows and a fingerprint of all bytes. The same tables give the same bytes.
//! Does not open files: it writes to and reads from what it is given.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use sbc_proto::cluster::v1 as pb;
use sbc_proto::cluster::v1::snapshot_record::Record;

use super::digest::Hasher;
use super::record::{Address, Ban, Binding, BindingKey, Count, Dialog, Node, Token, node_id};
use super::tables::{Rows, Tables};
use crate::types::{AorKey, DialogKey, NodeId};

const MAGIC: &[u8; 8] = b"SBCSNAP1";
/// A row's value is at most 256 KiB.
const FRAME_BYTES_MAX: u32 = 512 * 1024;

/// Where in the log a snapshot stands, and who was a member then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) conf: raft::eraftpb::ConfState,
}

impl Position {
    /// Where a new cluster begins: members that come later start empty and are fed a snapshot.
    pub(crate) fn genesis(voters: &[NodeId]) -> Self {
        let mut position = Position { index: 1, term: 1, ..Position::default() };
        position.conf.voters = voters.iter().map(|id| id.0).collect();
        position
    }
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("reading or writing the snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("not a snapshot, or damaged: {0}")]
    Damaged(&'static str),
    #[error("snapshot of format version {version}, this build reads up to {reads}")]
    Unsupported { version: u32, reads: u32 },
}

/// The rows as they were at one index; what is written out while the tables go on.
#[derive(Clone)]
pub(crate) struct Frozen(Rows);

impl Tables {
    pub(crate) fn freeze(&self) -> Frozen {
        Frozen(self.rows.clone())
    }

    /// Reads a snapshot of a version up to `reads`. Fields that are not known are passed over; a row
    /// that is not known is damage: its writer should have raised the version.
    pub(crate) fn restore(
        input: &mut impl Read,
        reads: u32,
    ) -> Result<(Self, Position), SnapshotError> {
        let mut magic = [0u8; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(SnapshotError::Damaged("wrong magic"));
        }
        let header = read_frame(input)?.ok_or(SnapshotError::Damaged("no header"))?;
        let mut print = Hasher::new(10).bytes(&header);
        let header = pb::SnapshotHeader::decode(header)
            .map_err(|_| SnapshotError::Damaged("header does not decode"))?;
        if header.version > reads {
            return Err(SnapshotError::Unsupported { version: header.version, reads });
        }
        let mut tables = Tables::new(&header.cluster_id);
        tables.reads = reads;
        tables.rows.clock_ms = header.clock_ms;
        tables.rows.next_node = header.next_node;
        tables.rows.sweep = header.sweep;
        while let Some(frame) = read_frame(input)? {
            print = print.bytes(&frame);
            let record = pb::SnapshotRecord::decode(frame)
                .map_err(|_| SnapshotError::Damaged("row does not decode"))?;
            // A row of a later version that we do not know would be missed by the digest.
            let record = record.record.ok_or(SnapshotError::Damaged("unknown row"))?;
            tables.load(record).ok_or(SnapshotError::Damaged("row is malformed"))?;
        }
        let (mut digest, mut whole) = ([0u8; 16], [0u8; 16]);
        input.read_exact(&mut digest)?;
        input.read_exact(&mut whole)?;
        if u128::from_be_bytes(whole) != print.finish() {
            return Err(SnapshotError::Damaged("fingerprint differs"));
        }
        if u128::from_be_bytes(digest) != tables.digest() {
            return Err(SnapshotError::Damaged("digest differs"));
        }
        Ok((tables, position(header)))
    }

    fn load(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Dialog(row) => {
                let owner = NodeId(row.owner);
                let dialog = Dialog::new(owner, row.index, row.group, &row.lookups, &row.value);
                self.put_dialog(DialogKey((&*row.id).try_into().ok()?), dialog);
            }
            Record::Binding(row) => {
                let key =
                    BindingKey { aor: AorKey((&*row.aor).try_into().ok()?), contact: row.contact };
                let by = (NodeId(row.owner), row.boot);
                let binding = Binding::new(by, row.index, row.expires_ms, row.flow, &row.value);
                self.put_binding(key, binding);
            }
            Record::Ban(row) => {
                let ban = Ban { expires_ms: row.expires_ms, value: (&*row.value).into() };
                self.put_ban((&*row.key).into(), ban);
            }
            Record::Node(row) => {
                let (id, node) = Node::from_pb(row)?;
                self.put_node(id, node);
            }
            Record::Address(row) => {
                let (name, address) = Address::from_pb(row);
                Arc::make_mut(&mut self.rows.addresses).insert(name, address);
            }
            Record::Setting(row) => {
                Arc::make_mut(&mut self.rows.settings).insert(row.key, (&*row.value).into());
            }
            Record::Count(row) => {
                let key = (row.trunk, NodeId(row.node));
                let count = Count { calls: row.calls, until_ms: row.until_ms };
                Arc::make_mut(&mut self.rows.counts).insert(key, count);
            }
            Record::Session(row) => {
                let key = NodeId(row.node);
                Arc::make_mut(&mut self.rows.sessions).insert(key, (row.boot, row.seq));
            }
            Record::Token(row) => {
                let hash = (&*row.hash).try_into().ok()?;
                let joiner = match &*row.joiner {
                    [] => None,
                    joiner => Some(joiner.try_into().ok()?),
                };
                let used_by = node_id(row.used_by);
                let token = Token { expires_ms: row.expires_ms, used_by, joiner };
                Arc::make_mut(&mut self.rows.tokens).insert(hash, token);
            }
        }
        Some(())
    }
}

impl Frozen {
    /// Writes the whole snapshot; returns its size in bytes.
    pub(crate) fn write(&self, at: &Position, out: &mut impl Write) -> io::Result<u64> {
        let rows = &self.0;
        let mut out = Frames { out, scratch: Vec::new(), bytes: 0, print: Hasher::new(10) };
        out.raw(MAGIC)?;
        out.frame(&header(rows, at))?;
        for (id, node) in &*rows.nodes {
            out.row(Record::Node(node.to_pb(*id)))?;
        }
        for (name, address) in &*rows.addresses {
            out.row(Record::Address(address.to_pb(name)))?;
        }
        for (key, value) in &*rows.settings {
            let value = Bytes::copy_from_slice(value);
            let key = key.clone();
            out.row(Record::Setting(pb::SettingRecord { key, value }))?;
        }
        for (&(trunk, node), &Count { calls, until_ms }) in &*rows.counts {
            let node = node.0;
            out.row(Record::Count(pb::CountRecord { trunk, node, calls, until_ms }))?;
        }
        for (node, &(boot, seq)) in &*rows.sessions {
            let node = node.0;
            out.row(Record::Session(pb::SessionRecord { node, boot, seq }))?;
        }
        for (hash, token) in &*rows.tokens {
            out.row(Record::Token(pb::TokenRecord {
                hash: Bytes::copy_from_slice(hash),
                expires_ms: token.expires_ms,
                used_by: token.used_by.map_or(0, |node| node.0),
                joiner: token.joiner.map_or_else(Bytes::new, |key| Bytes::copy_from_slice(&key)),
            }))?;
        }
        for (key, dialog) in rows.dialogs.iter() {
            out.row(Record::Dialog(pb::DialogRecord {
                id: Bytes::copy_from_slice(&key.0),
                owner: dialog.owner.0,
                group: dialog.group,
                lookups: dialog.lookups().collect(),
                value: Bytes::copy_from_slice(dialog.value()),
                index: dialog.index(),
            }))?;
        }
        for (key, binding) in rows.bindings.iter() {
            let (owner, boot) = binding.writer();
            out.row(Record::Binding(pb::BindingRecord {
                aor: Bytes::copy_from_slice(&key.aor.0),
                contact: key.contact,
                expires_ms: binding.expires_ms,
                value: Bytes::copy_from_slice(binding.value()),
                index: binding.index(),
                owner: owner.0,
                boot,
                flow: binding.flow,
            }))?;
        }
        for (key, ban) in rows.bans.iter() {
            out.row(Record::Ban(pb::BanRecord {
                key: Bytes::copy_from_slice(key),
                expires_ms: ban.expires_ms,
                value: Bytes::copy_from_slice(&ban.value),
            }))?;
        }
        out.raw(&0u32.to_be_bytes())?;
        out.raw(&rows.digest().to_be_bytes())?;
        let print = out.print.finish();
        out.raw(&print.to_be_bytes())?;
        out.out.flush()?;
        Ok(out.bytes)
    }
}

struct Frames<'a, W> {
    out: &'a mut W,
    scratch: Vec<u8>,
    bytes: u64,
    /// Of all frames so far.
    print: Hasher,
}

impl<W: Write> Frames<'_, W> {
    fn raw(&mut self, data: &[u8]) -> io::Result<()> {
        self.bytes += data.len() as u64;
        self.out.write_all(data)
    }

    fn frame(&mut self, message: &impl prost::Message) -> io::Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        message.encode(&mut scratch).map_err(io::Error::other)?;
        let len = u32::try_from(scratch.len()).map_err(io::Error::other)?;
        self.raw(&len.to_be_bytes())?;
        self.raw(&scratch)?;
        self.print = self.print.bytes(&scratch);
        self.scratch = scratch;
        Ok(())
    }

    fn row(&mut self, record: Record) -> io::Result<()> {
        self.frame(&pb::SnapshotRecord { record: Some(record) })
    }
}

fn read_frame(input: &mut impl Read) -> Result<Option<Bytes>, SnapshotError> {
    let mut len = [0u8; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len);
    if len == 0 {
        return Ok(None);
    }
    if len > FRAME_BYTES_MAX {
        return Err(SnapshotError::Damaged("row is too long"));
    }
    let mut frame = vec![0u8; usize::try_from(len).unwrap_or(0)];
    input.read_exact(&mut frame)?;
    Ok(Some(frame.into()))
}

fn header(rows: &Rows, at: &Position) -> pb::SnapshotHeader {
    pb::SnapshotHeader {
        version: rows.format(),
        index: at.index,
        term: at.term,
        voters: at.conf.voters.clone(),
        learners: at.conf.learners.clone(),
        voters_outgoing: at.conf.voters_outgoing.clone(),
        learners_next: at.conf.learners_next.clone(),
        auto_leave: at.conf.auto_leave,
        clock_ms: rows.clock_ms,
        next_node: rows.next_node,
        cluster_id: Bytes::copy_from_slice(&rows.cluster_id),
        sweep: rows.sweep,
    }
}

fn position(header: pb::SnapshotHeader) -> Position {
    Position {
        index: header.index,
        term: header.term,
        conf: raft::eraftpb::ConfState {
            voters: header.voters,
            learners: header.learners,
            voters_outgoing: header.voters_outgoing,
            learners_next: header.learners_next,
            auto_leave: header.auto_leave,
            ..Default::default()
        },
    }
}
