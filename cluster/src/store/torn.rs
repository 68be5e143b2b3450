//! The log over a disk that loses or tears whatever was not synced when the power went.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::{Arc, Mutex};

use raft::eraftpb::{Entry, HardState};
use redb::{Database, StorageBackend};

use super::{LogStore, RedbLog};
use crate::core::Persist;

#[derive(Debug, Default)]
struct Platter {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Writes since the last sync.
    cached: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs until the power goes.
    power: Option<u64>,
}

impl Platter {
    fn draw(&mut self) -> io::Result<()> {
        match &mut self.power {
            None => Ok(()),
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Lossy(Arc<Mutex<Platter>>);

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

impl StorageBackend for Lossy {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let platter = self.0.lock().unwrap();
        let data = platter.now.get(offset..offset + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // The file's length is metadata that journals keep: taken for durable at once.
        let len = usize::try_from(len).unwrap();
        let mut platter = self.0.lock().unwrap();
        platter.now.resize(len, 0);
        platter.synced.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.draw()?;
        platter.synced = platter.now.clone();
        platter.cached.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let mut platter = self.0.lock().unwrap();
        platter.draw()?;
        put(&mut platter.now, offset, data);
        platter.cached.push((offset, data.to_vec()));
        Ok(())
    }
}

impl Lossy {
    /// What is found after the power is back: of each unsynced write all, nothing, or a part.
    fn after_power_cut(&self, mut chance: u64) -> Lossy {
        let platter = self.0.lock().unwrap();
        let mut bytes = platter.synced.clone();
        for (offset, data) in &platter.cached {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let kept = match (chance >> 33) % 3 {
                0 => 0,
                1 => data.len(),
                _ => data.len() / 2,
            };
            put(&mut bytes, *offset, &data[..kept]);
        }
        Lossy(Arc::new(Mutex::new(Platter {
            now: bytes.clone(),
            synced: bytes,
            ..Platter::default()
        })))
    }
}

fn open(disk: &Lossy) -> (RedbLog, super::LogContent) {
    let db = Database::builder().create_with_backend(disk.clone()).unwrap();
    RedbLog::load(db).unwrap()
}

fn persist(index: u64) -> Persist {
    let entry = Entry { index, term: 1, data: vec![7; 700].into(), ..Entry::default() };
    let hard_state = HardState { term: 1, commit: index, ..HardState::default() };
    Persist { number: index, entries: vec![entry], hard_state, snapshot: None }
}

#[test]
fn what_was_acknowledged_survives_torn_writes() {
    let mut torn = 0;
    for round in 0..60u64 {
        let disk = Lossy::default();
        let (mut log, _) = open(&disk);
        disk.0.lock().unwrap().power = Some(round * 3);
        let mut acknowledged = 0;
        while log.write(&[persist(acknowledged + 1)]).is_ok() {
            acknowledged += 1;
        }
        torn += usize::from(!disk.0.lock().unwrap().cached.is_empty());
        let cut = disk.after_power_cut(round * 7_919 + 1);
        drop(log);
        let (_, content) = open(&cut);
        let last = content.entries.last().map_or(0, |entry| entry.index);
        assert!(last == acknowledged || last == acknowledged + 1, "round {round}: {last}");
        assert_eq!(content.entries.len() as u64, last, "without a gap");
        assert!(content.hard_state.commit <= last);
        assert!(content.entries.iter().all(|entry| entry.data == vec![7; 700]));
    }
    assert!(torn > 20, "{torn} rounds left something torn");
}
