//! Answered calls that have not ended, noted on the disk of a node by itself: after a crash of the
//! process the next one tells their records, with cause `crash`. In a cluster another node carries
//! such calls on and tells them.
//!
//! Beside the file of records, `FILE.answered` holds a line per answer (`+ID ANSWERED RECORD`, the record as it
//! would be told) and per end (`-ID`). It is begun anew when it has grown and little of it is in use.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use hashbrown::HashSet;
use sbc_core::b2bua::{CallId, Cdr};

use super::cdr_json;
use super::time::Utc;

/// The file is begun anew beyond this, and then beyond twice what it holds of calls that are up.
const COMPACT_BYTES: u64 = 16 << 20;
/// How much of the last records is searched for calls that were told just before a crash.
const TOLD_BYTES: u64 = 1 << 20;

/// The notes of calls that are up.
pub(super) struct Unfinished {
    path: PathBuf,
    file: Option<File>,
    fsync: bool,
    up: HashSet<CallId>,
    buffer: Vec<u8>,
    /// The last write failed: the file may end within a line.
    torn: bool,
    bytes: u64,
    compact_at: u64,
}

impl Unfinished {
    /// Reads what the process before left. Yields, besides, the records to tell of calls that it did
    /// not end, each with its line end; call [`begin`](Self::begin) once they are written.
    ///
    /// # Errors
    /// When the notes cannot be read.
    pub(super) fn open(records: &Path, fsync: bool) -> io::Result<(Unfinished, Vec<u8>)> {
        let mut path = records.as_os_str().to_owned();
        path.push(".answered");
        let path = PathBuf::from(path);
        let lines = match File::open(&path) {
            Ok(file) => left_up(file, records)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let unfinished = Unfinished {
            path,
            file: None,
            fsync,
            up: HashSet::new(),
            buffer: Vec::new(),
            torn: false,
            bytes: 0,
            compact_at: COMPACT_BYTES,
        };
        Ok((unfinished, lines))
    }

    /// Forgets what was there.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn begin(mut self) -> io::Result<Unfinished> {
        self.file = Some(File::create(&self.path)?);
        Ok(self)
    }

    /// A call was answered; `cdr` is its record, should nothing more be heard of it.
    pub(super) fn answered(&mut self, cdr: &Cdr, node: &str) {
        self.up.insert(cdr.call);
        let line = format!("+{} {} ", cdr.call, cdr.answered_ms.unwrap_or(cdr.ended_ms));
        self.buffer.extend_from_slice(line.as_bytes());
        cdr_json::write(&mut self.buffer, cdr, node);
        self.buffer.push(b'\n');
    }

    /// A call's record was told.
    pub(super) fn ended(&mut self, call: CallId) {
        if self.up.remove(&call) {
            self.buffer.extend_from_slice(format!("-{call}\n").as_bytes());
        }
    }

    /// Writes what was noted.
    ///
    /// # Errors
    /// When it cannot be written; it is given up then, so that nothing grows.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut noted = std::mem::take(&mut self.buffer);
        if std::mem::take(&mut self.torn) {
            noted.insert(0, b'\n');
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.file.insert(OpenOptions::new().create(true).append(true).open(&self.path)?)
            }
        };
        if let Err(error) = file.write_all(&noted) {
            self.torn = true;
            return Err(error);
        }
        if self.fsync {
            file.sync_data()?;
        }
        self.bytes += noted.len() as u64;
        self.buffer = noted;
        self.buffer.clear();
        if self.bytes >= self.compact_at { self.compact() } else { Ok(()) }
    }

    /// Writes anew what is still of use.
    fn compact(&mut self) -> io::Result<()> {
        let mut fresh = self.path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let mut out = io::BufWriter::new(File::create(&fresh)?);
        let mut bytes = 0;
        let mut noted = BufReader::new(File::open(&self.path)?);
        let mut line = Vec::new();
        while noted.read_until(b'\n', &mut line)? > 0 {
            if line.first() == Some(&b'+')
                && noted_id(&line).is_some_and(|id| self.up.contains(&id))
            {
                out.write_all(&line)?;
                bytes += line.len() as u64;
            }
            line.clear();
        }
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if self.fsync {
            file.sync_data()?;
        }
        fs::rename(&fresh, &self.path)?;
        (self.file, self.bytes) = (Some(file), bytes);
        self.compact_at = COMPACT_BYTES.max(bytes * 2);
        Ok(())
    }
}

/// The call that a line is about.
fn noted_id(line: &[u8]) -> Option<CallId> {
    std::str::from_utf8(line.get(1..17)?).ok()?.parse().ok()
}

/// `+ID ANSWERED RECORD`; the time in Unix milliseconds.
fn answer(line: &[u8]) -> Option<(CallId, u64, &str)> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix('+')?;
    let mut words = text.splitn(3, ' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?))
}

/// The records of the calls that were up when the process ended. Their end is the last time that
/// anything was noted: nobody knows better.
fn left_up(file: File, records: &Path) -> io::Result<Vec<u8>> {
    let noted = file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let noted_ms = u64::try_from(noted.as_millis()).unwrap_or(u64::MAX);
    let mut up: Vec<(CallId, u64, String)> = Vec::new();
    let mut ended: HashSet<CallId> = HashSet::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        match answer(&line) {
            Some((id, answered_ms, record)) => up.push((id, answered_ms, record.to_owned())),
            None => {
                let id = std::str::from_utf8(&line).ok().and_then(|l| l.strip_prefix('-'));
                ended.extend(id.and_then(|id| id.parse::<CallId>().ok()));
            }
        }
    }
    up.retain(|(id, ..)| !ended.contains(id));
    if up.is_empty() {
        return Ok(Vec::new());
    }
    let told = last_told(records)?;
    let mut lines = Vec::new();
    for (id, answered_ms, record) in up {
        // The last line may be half a line, and its call was not answered yet.
        let Ok(mut record) = serde_json::from_str::<serde_json::Value>(&record) else { continue };
        if told.contains(&id.to_string()) {
            continue;
        }
        if let Some(map) = record.as_object_mut() {
            let ended_ms = noted_ms.max(answered_ms);
            map.insert("ended".to_owned(), Utc(ended_ms).to_string().into());
            map.insert("duration_ms".to_owned(), (ended_ms - answered_ms).into());
        }
        lines.extend_from_slice(record.to_string().as_bytes());
        lines.push(b'\n');
    }
    let calls = lines.iter().filter(|b| **b == b'\n').count();
    tracing::warn!(calls, "the process before ended with calls up: their records are told now");
    Ok(lines)
}

/// The end of the file of records.
fn last_told(records: &Path) -> io::Result<String> {
    let mut file = match File::open(records) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TOLD_BYTES)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sbc_core::b2bua::{EndCause, EndedBy};

    fn call(id: u64) -> Cdr {
        let ended_by = EndedBy::Sbc(EndCause::Crash);
        Cdr { answered_ms: Some(1_000), ended_by, ..*crate::telemetry::cdr::tests::cdr(id) }
    }

    fn calls(lines: &[u8]) -> Vec<String> {
        let text = String::from_utf8(lines.to_vec()).unwrap();
        let id = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&record["status"], &record["cause"]), (&200.into(), &"crash".into()));
            assert!(record["duration_ms"].as_u64().unwrap() > 0);
            record["call"].as_str().unwrap().trim_start_matches('0').to_owned()
        };
        text.lines().map(id).collect()
    }

    #[test]
    fn what_was_answered_and_not_told_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("cdr.jsonl");
        let (unfinished, lines) = Unfinished::open(&records, true).unwrap();
        assert!(lines.is_empty());
        let mut unfinished = unfinished.begin().unwrap();
        for id in 1..=4 {
            unfinished.answered(&call(id), "n1");
        }
        unfinished.ended(CallId(2));
        unfinished.ended(CallId(9));
        unfinished.flush().unwrap();
        drop(unfinished);
        // A record that was written, whose end was not noted; and half a line at the end.
        fs::write(&records, "{\"call\":\"0000000000000003\"}\n").unwrap();
        let notes = dir.path().join("cdr.jsonl.answered");
        let half = b"+0000000000000005 1000 {\"call\":";
        OpenOptions::new().append(true).open(&notes).unwrap().write_all(half).unwrap();
        let (unfinished, lines) = Unfinished::open(&records, true).unwrap();
        assert_eq!(calls(&lines), ["1", "4"]);
        unfinished.begin().unwrap();
        assert!(Unfinished::open(&records, true).unwrap().1.is_empty());
    }

    #[test]
    fn half_a_note_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("cdr.jsonl");
        let mut unfinished = Unfinished::open(&records, false).unwrap().0.begin().unwrap();
        unfinished.answered(&call(1), "n1");
        unfinished.flush().unwrap();
        // What a disk took before it was full.
        unfinished.file.as_mut().unwrap().write_all(b"+0000000000000002 1000 {\"ca").unwrap();
        unfinished.torn = true;
        unfinished.answered(&call(3), "n1");
        unfinished.flush().unwrap();
        unfinished.ended(CallId(1));
        unfinished.flush().unwrap();
        drop(unfinished);
        assert_eq!(calls(&Unfinished::open(&records, false).unwrap().1), ["3"]);
    }

    #[test]
    fn the_notes_shrink_to_what_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("cdr.jsonl");
        let mut unfinished = Unfinished::open(&records, false).unwrap().0.begin().unwrap();
        unfinished.compact_at = 1;
        for id in 1..=100 {
            unfinished.answered(&call(id), "n1");
            unfinished.flush().unwrap();
            unfinished.ended(CallId(id.saturating_sub(2)));
        }
        unfinished.flush().unwrap();
        unfinished.compact().unwrap();
        let left = fs::metadata(dir.path().join("cdr.jsonl.answered")).unwrap().len();
        assert_eq!(left, unfinished.bytes);
        drop(unfinished);
        assert_eq!(calls(&Unfinished::open(&records, false).unwrap().1), ["63", "64"]);
    }
}
