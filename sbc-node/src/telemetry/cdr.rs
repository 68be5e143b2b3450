//! Call detail records: JSON lines, written by a thread of their own. Calls that are up are noted
//! beside them (`unfinished.rs`), so that a crash loses none that was answered.
//!
//! A record is handed to the system (`write`) at once when it comes alone; those that come within
//! [`GATHER`] of the last write are written together, which is what a crash of the process can cost.
//! Meanwhile the thread sleeps by the clock, so that handing over wakes nobody. `fsync` covers a crash
//! of the machine. The queue is bounded:
//! a shard never waits, what does not fit is counted and logged, and a backlog raises an alarm
//! well before that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sbc_core::b2bua::Cdr;

use super::cdr_json;
use super::time::{Utc, unix_ms};
use super::unfinished::Unfinished;

/// Records that may wait for the disk.
pub const QUEUE_MAX: usize = 65_536;
/// What is taken from the queue per `write` when it comes faster than the disk takes it.
const BATCH_MAX: usize = 512;
/// What comes within this time of the last write is written together: waking up and going to the
/// file system for each costs several times what its text costs.
const GATHER: Duration = Duration::from_millis(10);
/// Pause before a failed write is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Attempts for a batch once the node is stopping.
const LAST_ATTEMPTS: u32 = 4;

/// Where records go and how files turn over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file being written; older ones get a time appended to their name. `None` writes none.
    pub path: Option<PathBuf>,
    /// A file is turned over when it is larger than this.
    pub rotate_bytes: Option<u64>,
    /// A file is turned over when it is older than this.
    pub rotate_every: Option<Duration>,
    /// Older files that are kept; `None` keeps all.
    pub keep: Option<usize>,
    /// Whether each batch is synced to the disk.
    pub fsync: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            path: None,
            rotate_bytes: Some(256 << 20),
            rotate_every: Some(Duration::from_secs(86_400)),
            keep: None,
            fsync: false,
        }
    }
}

enum Job {
    Record(Box<Cdr>),
    /// The call was answered; this is what is known of it.
    Answered(Box<Cdr>),
    Reopen,
    Stop,
}

/// What happened to records so far.
#[derive(Debug, Default)]
pub struct CdrStats {
    pub written: AtomicU64,
    /// The queue was full: the record is lost, but for its log line.
    pub lost: AtomicU64,
    pub errors: AtomicU64,
    /// Written without the kernel's last counters, which did not come in time.
    pub incomplete: AtomicU64,
    pub queued: AtomicU64,
    /// The last write failed.
    pub failing: AtomicBool,
}

/// Hands records to the writer.
#[derive(Clone)]
pub struct CdrSink {
    queue: SyncSender<Job>,
    pub stats: Arc<CdrStats>,
    /// Shown in every record.
    node: Arc<str>,
}

/// The writer's thread.
pub struct CdrWriter {
    sink: CdrSink,
    thread: JoinHandle<()>,
}

impl CdrSink {
    /// Queues a record; never waits.
    pub fn push(&self, cdr: Box<Cdr>) {
        // Counted before it is sent, so that the writer never counts below zero.
        self.stats.queued.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.queue.try_send(Job::Record(cdr)) {
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
            let lost = self.stats.lost.fetch_add(1, Ordering::Relaxed) + 1;
            let job = match error {
                std::sync::mpsc::TrySendError::Full(job)
                | std::sync::mpsc::TrySendError::Disconnected(job) => job,
            };
            if let Job::Record(cdr) = job {
                let mut record = Vec::new();
                cdr_json::write(&mut record, &cdr, &self.node);
                let record = String::from_utf8_lossy(&record);
                tracing::error!(lost, %record, "CDR queue full: record only in the log");
            }
        }
    }

    /// Notes that a call was answered, in case that the process ends before the call does. A queue
    /// that is full takes no note.
    pub fn answered(&self, cdr: Box<Cdr>) {
        let _ = self.queue.try_send(Job::Answered(cdr));
    }

    /// Reopens the file by its name, after somebody else moved it.
    pub fn reopen(&self) {
        // A queue that is full turns over soon enough by itself.
        let _ = self.queue.try_send(Job::Reopen);
    }

    /// Named trouble, if any.
    pub fn alarm(&self) -> Option<&'static str> {
        let queued = self.stats.queued.load(Ordering::Relaxed);
        if self.stats.failing.load(Ordering::Relaxed) {
            Some("cdr-write-failing")
        } else if queued > u64::try_from(QUEUE_MAX / 2).unwrap_or(u64::MAX) {
            Some("cdr-backlog")
        } else {
            None
        }
    }
}

impl CdrWriter {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(settings: Settings, node: &str) -> io::Result<CdrWriter> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let stats = Arc::new(CdrStats::default());
        let sink = CdrSink { queue, stats: Arc::clone(&stats), node: Arc::from(node) };
        let fsync = settings.fsync;
        let mut file = CdrFile::open(settings)?;
        let node = Arc::clone(&sink.node);
        let unfinished = match file.settings.path.clone() {
            Some(path) => {
                let (unfinished, lines) = Unfinished::open(&path, fsync)?;
                file.write(&mut lines.as_slice())?;
                Some(unfinished.begin()?)
            }
            None => None,
        };
        let thread = std::thread::Builder::new()
            .name("cdr".to_owned())
            .spawn(move || Writer { jobs, file, unfinished, stats, node, stopping: false }.run())?;
        Ok(CdrWriter { sink, thread })
    }

    pub fn sink(&self) -> CdrSink {
        self.sink.clone()
    }

    /// Writes what is queued and ends.
    pub fn stop(self) {
        if self.sink.queue.send(Job::Stop).is_ok() && self.thread.join().is_err() {
            tracing::error!("the CDR writer panicked");
        }
    }
}

struct Writer {
    jobs: Receiver<Job>,
    file: CdrFile,
    unfinished: Option<Unfinished>,
    stats: Arc<CdrStats>,
    node: Arc<str>,
    stopping: bool,
}

impl Writer {
    fn run(mut self) {
        let mut lines = Vec::new();
        while !self.stopping {
            match self.jobs.recv_timeout(Duration::from_secs(1)) {
                Ok(first) => {
                    let taken = self.batch(first, &mut lines);
                    if taken < BATCH_MAX && !self.stopping {
                        std::thread::sleep(GATHER);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.turn_over(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes the first of what is queued and what has gathered behind it; `lines` is room for it.
    /// Yields how much that was.
    fn batch(&mut self, first: Job, lines: &mut Vec<u8>) -> usize {
        let (mut taken, mut count, mut reopen) = (0, 0, false);
        lines.clear();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            taken += 1;
            match job {
                Job::Record(cdr) => {
                    count += 1;
                    cdr_json::write(lines, &cdr, &self.node);
                    lines.push(b'\n');
                    if let Some(unfinished) = &mut self.unfinished {
                        unfinished.ended(cdr.call);
                    }
                }
                Job::Answered(cdr) => {
                    if let Some(unfinished) = &mut self.unfinished {
                        unfinished.answered(&cdr, &self.node);
                    }
                }
                Job::Reopen => reopen = true,
                Job::Stop => self.stopping = true,
            }
            if taken < BATCH_MAX {
                next = self.jobs.try_recv().ok();
            }
        }
        if reopen && let Err(error) = self.file.reopen() {
            tracing::error!(%error, "cannot reopen the CDR file");
        }
        if count > 0 && self.file.is_gone() {
            self.stats.errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!("the CDR file was removed or moved: begun anew");
            if let Err(error) = self.file.reopen() {
                tracing::error!(%error, "cannot reopen the CDR file");
            }
        }
        self.write(lines, count);
        // After the records: a crash between the two tells a call twice rather than never.
        if let Some(unfinished) = &mut self.unfinished
            && let Err(error) = unfinished.flush()
        {
            self.stats.errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "cannot note which calls are up");
        }
        self.turn_over();
        taken
    }

    fn write(&mut self, mut lines: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        let mut attempts = 0;
        loop {
            match self.file.write(&mut lines) {
                Ok(()) => {
                    self.stats.failing.store(false, Ordering::Relaxed);
                    self.stats.written.fetch_add(count, Ordering::Relaxed);
                    break;
                }
                Err(error) => {
                    attempts += 1;
                    self.stats.failing.store(true, Ordering::Relaxed);
                    self.stats.errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, records = count, "cannot write CDRs");
                    if self.stopping && attempts >= LAST_ATTEMPTS {
                        let records = String::from_utf8_lossy(lines);
                        tracing::error!(%records, "CDRs only in the log");
                        break;
                    }
                    // The queue holds what comes meanwhile, and the alarm is up.
                    std::thread::sleep(RETRY);
                    if let Err(error) = self.file.reopen() {
                        tracing::error!(%error, "cannot reopen the CDR file");
                    }
                }
            }
        }
        self.stats.queued.fetch_sub(count, Ordering::Relaxed);
    }

    fn turn_over(&mut self) {
        if let Err(error) = self.file.turn_over() {
            tracing::error!(%error, "cannot rotate the CDR file");
        }
    }
}

/// The file being written.
struct CdrFile {
    settings: Settings,
    file: Option<File>,
    /// Which file that is: its device and number.
    place: Option<(u64, u64)>,
    bytes: u64,
    since: Instant,
}

/// The device of a file and its number there.
fn place(file: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

impl CdrFile {
    fn open(settings: Settings) -> io::Result<CdrFile> {
        let mut file =
            CdrFile { settings, file: None, place: None, bytes: 0, since: Instant::now() };
        file.reopen()?;
        Ok(file)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.settings.path else { return Ok(()) };
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let about = file.metadata()?;
        (self.bytes, self.place) = (about.len(), Some(place(&about)));
        self.since = Instant::now();
        self.file = Some(file);
        Ok(())
    }

    /// Whether the name leads to another file by now, or to none: what is written would be lost.
    fn is_gone(&self) -> bool {
        let (Some(path), Some(_)) = (&self.settings.path, self.place) else { return false };
        fs::metadata(path).ok().as_ref().map(place) != self.place
    }

    /// Writes all of `lines`; on an error what is left to write stays in `lines`.
    fn write(&mut self, lines: &mut &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return match self.settings.path {
                None => Ok(()),
                Some(_) => Err(io::Error::new(io::ErrorKind::NotFound, "no CDR file is open")),
            };
        };
        while !lines.is_empty() {
            match file.write(lines) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.bytes += u64::try_from(count).unwrap_or(0);
                    *lines = lines.get(count..).unwrap_or_default();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.settings.fsync { file.sync_data() } else { Ok(()) }
    }

    /// Moves a file that is too large or too old aside and begins another.
    fn turn_over(&mut self) -> io::Result<()> {
        let Some(path) = &self.settings.path else { return Ok(()) };
        let large = self.settings.rotate_bytes.is_some_and(|max| self.bytes >= max);
        let old = self.settings.rotate_every.is_some_and(|age| self.since.elapsed() >= age);
        if self.bytes == 0 || !(large || old) {
            return Ok(());
        }
        let stem = format!("{}.{}", path.display(), Utc(unix_ms()).compact());
        // Several turns within a second get numbers.
        let free = (0..10_000)
            .map(|n| PathBuf::from(if n == 0 { stem.clone() } else { format!("{stem}.{n}") }))
            .find(|candidate| !candidate.exists());
        if let Some(free) = free {
            fs::rename(path, free)?;
        }
        self.reopen()?;
        self.forget_old()
    }

    /// Removes the oldest files past the number to keep.
    fn forget_old(&self) -> io::Result<()> {
        let (Some(path), Some(keep)) = (&self.settings.path, self.settings.keep) else {
            return Ok(());
        };
        let (Some(name), Some(dir)) = (path.file_name(), path.parent()) else { return Ok(()) };
        let prefix = format!("{}.2", name.to_string_lossy());
        let dir = if dir.as_os_str().is_empty() { std::path::Path::new(".") } else { dir };
        let mut old: Vec<PathBuf> = fs::read_dir(dir)?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|p| {
                p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix.as_str()))
            })
            .collect();
        // The time in the name sorts by age; numbers of one second by when they were written.
        let written = |p: &PathBuf| fs::metadata(p).and_then(|m| m.modified()).ok();
        old.sort_by_key(|p| (written(p), p.clone()));
        let excess = old.len().saturating_sub(keep);
        old.iter().take(excess).try_for_each(fs::remove_file)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use sbc_core::b2bua::{CallId, CdrAttempt, CdrLeg, EndCause, EndedBy, Written};
    use sbc_core::media::StreamStats;
    use serde_json::Value;

    use super::*;

    pub(in crate::telemetry) fn cdr(call: u64) -> Box<Cdr> {
        Box::new(Cdr {
            call: CallId(call),
            started_ms: 1_000,
            ringing_ms: Some(1_500),
            answered_ms: Some(2_000),
            ended_ms: 5_000,
            dialled: "sip:1\"2\n@example.com".to_owned(),
            from: "sip:a@example.com".to_owned(),
            to: "sip:b@example.com".to_owned(),
            a: CdrLeg { trunk: Arc::from("carrier"), ..CdrLeg::default() },
            b: None,
            attempts: vec![CdrAttempt { trunk: Arc::from("pbx"), peer: None, status: 200 }],
            status: 200,
            reason: "OK".to_owned(),
            ended_by: EndedBy::Sbc(EndCause::Operator),
            end_reason: None,
            codecs: vec!["PCMA".to_owned()],
            media: vec![StreamStats::default()],
            protected: false,
            written: Written::Never,
        })
    }

    fn records(path: &std::path::Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn one_line_per_call_whatever_the_peer_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/cdr.jsonl");
        let settings = Settings { path: Some(path.clone()), fsync: true, ..Settings::default() };
        let writer = CdrWriter::start(settings, "n1").unwrap();
        writer.sink().push(cdr(1));
        writer.sink().push(cdr(2));
        writer.stop();
        let records = records(&path);
        assert_eq!(records.len(), 2);
        assert_eq!(records[0]["dialled"], "sip:1\"2\n@example.com");
        assert_eq!(records[0]["answered"], "1970-01-01T00:00:02.000Z");
        assert_eq!(records[0]["duration_ms"], 3_000);
        assert_eq!(records[0]["cause"], "operator");
        assert_eq!(records[1]["call"], "0000000000000002");
    }

    #[test]
    fn files_turn_over_by_size_and_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cdr.jsonl");
        let settings =
            Settings { path: Some(path.clone()), rotate_bytes: Some(1), ..Settings::default() };
        let mut file = CdrFile::open(settings).unwrap();
        for n in 0..3 {
            let mut line = Vec::new();
            cdr_json::write(&mut line, &cdr(n), "n1");
            line.push(b'\n');
            file.write(&mut line.as_slice()).unwrap();
            file.turn_over().unwrap();
        }
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 4, "three full and one fresh: {files:?}");
        let all: usize = files.iter().map(|f| records(f).len()).sum();
        assert_eq!(all, 3);
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew_on_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cdr.jsonl");
        let settings = Settings { path: Some(path.clone()), ..Settings::default() };
        let writer = CdrWriter::start(settings, "n1").unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        writer.sink().reopen();
        writer.sink().push(cdr(7));
        writer.stop();
        assert_eq!(records(&path).len(), 1);
        assert_eq!(records(&dir.path().join("old")).len(), 0);
    }
}
