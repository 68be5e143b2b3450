//! What outlives the process: the Raft log with hard state (`log.redb`), snapshots as files
//! (`snapshots/`), and who this node is (`identity`). Everything that can be wrong with a disk has
//! its named [`StoreError`]. Nothing here knows what the entries mean.
//!
//! ```text
//! <dir>/identity            cluster id and node id, written last when a node is made
//! <dir>/log.redb            entries after the last snapshot, hard state, boot counter
//! <dir>/snapshots/<index>   the tables at an index
//! <dir>/pki/                certificates (pki.rs)
//! ```

mod files;
mod redb_log;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torn;
mod writer;

use std::io;
use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use crate::core::{Persist, Recovered};
use crate::state::{FORMAT_VERSION, Position, SnapshotError, Tables};
use crate::types::NodeId;

pub(crate) use files::{Identity, Snapshots, write_whole};
pub(crate) use redb_log::RedbLog;
pub(crate) use writer::{Done, Job, Writer};

/// What is wrong with the node's directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    /// The disk is full (ENOSPC, EDQUOT). Nothing was acknowledged that is not on disk.
    #[error("the disk is full")]
    DiskFull,
    /// The node has an identity but its log is gone: its votes are forgotten, so it must not vote
    /// again under this identity. Empty the directory and join anew.
    #[error("the log of node {0} is missing: empty the directory and join the cluster again")]
    LogMissing(NodeId),
    /// The log cannot be read. Empty the directory and join anew.
    #[error("the log is damaged: {0}")]
    LogDamaged(String),
    /// The snapshot that the log continues from is not there or not whole.
    #[error("snapshot {index} cannot be used: {source}")]
    Snapshot { index: u64, source: SnapshotError },
    /// Identity and tables speak of different clusters: files were mixed. Restore the right ones, or
    /// empty the directory and join anew.
    #[error("the directory holds files of two clusters: empty it and join the cluster again")]
    OtherCluster,
    #[error("another process uses this directory")]
    InUse,
    #[error("the identity file is damaged")]
    Identity,
}

impl StoreError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
            _ => StoreError::Io { path: path.display().to_string(), source },
        }
    }
}

/// Where the log is kept. Two implementors: redb for the node, memory for the simulation.
pub(crate) trait LogStore: Send {
    /// Writes all of `batch`, in order, atomically and durably.
    fn write(&mut self, batch: &[Persist]) -> Result<(), StoreError>;

    /// Notes that the snapshot at `position` is on disk and drops the entries up to `compact`.
    fn compact(&mut self, snapshot: u64, compact: u64) -> Result<(), StoreError>;
}

/// The raw content of a log.
pub(crate) struct LogContent {
    pub(crate) snapshot: u64,
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
    pub(crate) boot: u64,
}

/// The boot counter of a log that was made and never opened since. A node's own has been opened.
const MADE: u64 = 1;

/// A node's directory, opened.
pub(crate) struct Opened {
    pub(crate) identity: Identity,
    pub(crate) log: RedbLog,
    pub(crate) snapshots: Snapshots,
    pub(crate) recovered: Recovered,
    pub(crate) boot: u64,
}

/// Opens what an earlier run left; `None` when the directory holds no node yet.
/// `reads`: the highest format version this build reads.
pub(crate) fn open(dir: &Path, reads: u32) -> Result<Option<Opened>, StoreError> {
    let Some(identity) = Identity::read(dir)? else {
        return Ok(None);
    };
    let path = dir.join("log.redb");
    if !path.exists() {
        return Err(StoreError::LogMissing(identity.node));
    }
    let (log, content) = RedbLog::open(&path)?;
    if content.boot <= MADE {
        return Err(StoreError::LogMissing(identity.node));
    }
    let snapshots = Snapshots::open(dir, reads)?;
    let (tables, snapshot) = match content.snapshot {
        0 => (Tables::new(&identity.cluster_id), Position::default()),
        index => snapshots.load(index)?,
    };
    if tables.cluster_id() != identity.cluster_id {
        return Err(StoreError::OtherCluster);
    }
    snapshots.clean(content.snapshot);
    let last = content.entries.last().map_or(snapshot.index, |entry| entry.index);
    if last < content.hard_state.commit || last < snapshot.index {
        let committed = content.hard_state.commit.max(snapshot.index);
        let what = format!("it ends at {last}, but {committed} was committed");
        return Err(StoreError::LogDamaged(what));
    }
    let recovered =
        Recovered { tables, snapshot, hard_state: content.hard_state, entries: content.entries };
    Ok(Some(Opened { identity, log, snapshots, recovered, boot: content.boot }))
}

/// Makes a node's directory. `first` is the snapshot that the first node of a cluster starts from;
/// a node that joins has none. The identity is written last: a crash before leaves no node.
pub(crate) fn create(
    dir: &Path,
    identity: &Identity,
    first: Option<(&Tables, &Position)>,
) -> Result<(), StoreError> {
    std::fs::create_dir_all(dir).map_err(|e| StoreError::io(dir, e))?;
    let path = dir.join("log.redb");
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(StoreError::io(&path, e)),
    }
    let snapshots = Snapshots::open(dir, FORMAT_VERSION)?;
    let mut log = RedbLog::create(&path)?;
    if let Some((tables, position)) = first {
        snapshots.save(&tables.freeze(), position)?;
        log.begin(position)?;
    }
    drop(log);
    identity.write(dir)
}
