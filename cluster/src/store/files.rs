//! The plain files: identity and snapshots. Each is written beside its name, synced, renamed, and
//! the directory synced: it is there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::state::{Frozen, Position, SnapshotError, Tables};
use crate::types::NodeId;

/// Who the node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: Vec<u8>,
    pub(crate) node: NodeId,
}

impl Identity {
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join("identity");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io(&path, e)),
        };
        let mut words = text.split_whitespace();
        let (Some(cluster), Some(node), None) = (words.next(), words.next(), words.next()) else {
            return Err(StoreError::Identity);
        };
        let cluster_id = crate::hex::decode(cluster).ok_or(StoreError::Identity)?;
        let node = node.parse().map_err(|_| StoreError::Identity)?;
        Ok(Some(Identity { cluster_id, node: NodeId(node) }))
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let cluster = crate::hex::encode(&self.cluster_id);
        let text = format!("{cluster} {}\n", self.node);
        write_whole(dir, "identity", |file| file.write_all(text.as_bytes()))
    }
}

/// Writes `<dir>/<name>` so that a crash leaves the old file or the new one.
pub(crate) fn write_whole<T>(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T, StoreError> {
    let temporary = dir.join(format!("{name}.tmp"));
    let attempt = || {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let mut file = BufWriter::with_capacity(256 * 1024, file);
        let result = fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
        File::open(dir)?.sync_all()?;
        Ok(result)
    };
    attempt().map_err(|e| StoreError::io(&temporary, e))
}

/// The directory of snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    /// Up to which format version they are read.
    reads: u32,
}

impl Snapshots {
    pub(super) fn open(dir: &Path, reads: u32) -> Result<Self, StoreError> {
        let path = dir.join("snapshots");
        fs::create_dir_all(&path).map_err(|e| StoreError::io(&path, e))?;
        Ok(Snapshots { dir: path, reads })
    }

    fn name(index: u64) -> String {
        format!("{index:020}")
    }

    pub(crate) fn path(&self, index: u64) -> PathBuf {
        self.dir.join(Snapshots::name(index))
    }

    /// Where an arriving snapshot is gathered before its name is known to be deserved.
    pub(crate) fn incoming(&self, from: NodeId) -> PathBuf {
        self.dir.join(format!("from-{from}.tmp"))
    }

    pub(crate) fn save(&self, rows: &Frozen, at: &Position) -> Result<u64, StoreError> {
        write_whole(&self.dir, &Snapshots::name(at.index), |file| rows.write(at, file))
    }

    pub(crate) fn load(&self, index: u64) -> Result<(Tables, Position), StoreError> {
        let fail = |source| StoreError::Snapshot { index, source };
        let file = File::open(self.path(index)).map_err(|e| fail(e.into()))?;
        let mut file = BufReader::with_capacity(256 * 1024, file);
        let (tables, position) = Tables::restore(&mut file, self.reads).map_err(fail)?;
        if position.index != index {
            return Err(fail(SnapshotError::Damaged("it is of another index")));
        }
        Ok((tables, position))
    }

    /// Checks a gathered file and gives it its name.
    pub(crate) fn accept(&self, gathered: &Path) -> Result<(Tables, Position), StoreError> {
        let fail = |source| StoreError::Snapshot { index: 0, source };
        let file = File::open(gathered).map_err(|e| fail(e.into()))?;
        file.sync_all().map_err(|e| StoreError::io(gathered, e))?;
        let mut reader = BufReader::with_capacity(256 * 1024, file);
        let (tables, position) = Tables::restore(&mut reader, self.reads).map_err(fail)?;
        let path = self.path(position.index);
        let put = || {
            fs::rename(gathered, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        put().map_err(|e| StoreError::io(&path, e))?;
        Ok((tables, position))
    }

    /// Deletes snapshots older than `keep` and what was left half written. What cannot be deleted
    /// is tried again next time.
    pub(crate) fn clean(&self, keep: u64) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let index = name.to_str().and_then(|name| name.parse::<u64>().ok());
            if index.is_some_and(|index| index < keep) && fs::remove_file(entry.path()).is_err() {
                tracing::warn!(path = %entry.path().display(), "old snapshot not deleted");
            }
        }
    }
}
