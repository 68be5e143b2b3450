//! Toll-fraud profiles: what a user's calls may look like, with warning and critical thresholds.
//!
//! A user is whoever a caller of this module counts by (a trunk or an address of record). Nothing
//! here ends a call: findings come out, and the caller alarms or refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// Values from which on something is told; `None` does not look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Threshold {
    pub warning: Option<u32>,
    pub critical: Option<u32>,
}

impl Threshold {
    fn reached(&self, value: u32) -> Option<Severity> {
        let over = |limit: Option<u32>| limit.is_some_and(|l| value >= l);
        if over(self.critical) {
            Some(Severity::Critical)
        } else {
            over(self.warning).then_some(Severity::Warning)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Critical,
}

/// What calls of one kind may look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FraudProfile {
    pub name: Arc<str>,
    /// Called numbers that the profile is about; empty for all.
    pub prefixes: Vec<Box<str>>,
    /// Hours of the day (0 to 23, in the configured zone) in which it holds, `from..to`, over midnight too; `None`
    /// for all day.
    pub hours: Option<(u8, u8)>,
    /// New calls in the last minute.
    pub calls_per_minute: Threshold,
    /// Calls at the same time.
    pub concurrent: Threshold,
    /// Minutes of all calls in the last 24 hours.
    pub total_minutes: Threshold,
    /// Calls in a row to the same or to neighbouring numbers.
    pub sequential: Threshold,
    /// Calls past a critical threshold are refused; else it is told and they go on.
    pub block: bool,
}

/// Which threshold was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FraudKind {
    CallsPerMinute,
    Concurrent,
    TotalMinutes,
    Sequential,
}

impl FraudKind {
    /// A stable word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            FraudKind::CallsPerMinute => "calls-per-minute",
            FraudKind::Concurrent => "concurrent",
            FraudKind::TotalMinutes => "total-minutes",
            FraudKind::Sequential => "sequential",
        }
    }
}

/// A threshold that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub profile: Arc<str>,
    pub kind: FraudKind,
    pub severity: Severity,
    pub value: u32,
    /// The call is to be refused.
    pub block: bool,
    /// It is the first value over the threshold: worth a line of log.
    pub news: bool,
}

#[derive(Debug)]
struct Usage {
    minute: Instant,
    calls_in_minute: u32,
    calls_minute_before: u32,
    concurrent: u32,
    day: Instant,
    seconds: u64,
    last_number: Option<u64>,
    sequential: u32,
    touched: Instant,
}

/// See the module's header.
#[derive(Debug)]
pub struct Fraud {
    profiles: Vec<FraudProfile>,
    usage: HashMap<(usize, u64), Usage>,
    max: usize,
    /// Users that could not be watched because the table was full of users with calls.
    pub unwatched: u64,
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

impl Fraud {
    /// Watches at most `max` pairs of profile and user.
    pub fn new(profiles: Vec<FraudProfile>, max: usize) -> Fraud {
        Fraud { profiles, usage: HashMap::new(), max: max.max(1), unwatched: 0 }
    }

    /// A new call of `user` to `number` at hour `hour` of the day; the worst finding, if any. The call
    /// is counted whatever is found: a refused one must be ended with [`Fraud::ended`] too.
    pub fn started(&mut self, now: Instant, hour: u8, user: u64, number: &str) -> Option<Finding> {
        let mut worst: Option<Finding> = None;
        for index in 0..self.profiles.len() {
            let applies = self.profiles.get(index).is_some_and(|p| p.applies(hour, number));
            if !applies || !self.make_room((index, user), now) {
                continue;
            }
            let usage = self.usage.entry((index, user)).or_insert_with(|| Usage::new(now));
            usage.start(now, number);
            let Some(profile) = self.profiles.get(index) else { continue };
            for (kind, threshold, value) in usage.values(profile) {
                let found = threshold.reached(value).map(|severity| Finding {
                    profile: profile.name.clone(),
                    kind,
                    severity,
                    value,
                    block: profile.block && severity == Severity::Critical,
                    news: [threshold.warning, threshold.critical].contains(&Some(value)),
                });
                if found.as_ref().map(|f| f.severity) > worst.as_ref().map(|f| f.severity) {
                    worst = found;
                }
            }
        }
        worst
    }

    /// A call that was counted is over.
    pub fn ended(&mut self, now: Instant, user: u64, number: &str, duration: Duration) {
        for (index, profile) in self.profiles.iter().enumerate() {
            if !profile.has_number(number) {
                continue;
            }
            if let Some(usage) = self.usage.get_mut(&(index, user)) {
                usage.roll(now);
                usage.concurrent = usage.concurrent.saturating_sub(1);
                usage.seconds = usage.seconds.saturating_add(duration.as_secs());
            }
        }
    }

    pub fn len(&self) -> usize {
        self.usage.len()
    }

    pub fn is_empty(&self) -> bool {
        self.usage.is_empty()
    }

    /// Whether `key` is or may be watched: users without calls for a day give way.
    fn make_room(&mut self, key: (usize, u64), now: Instant) -> bool {
        if self.usage.len() < self.max || self.usage.contains_key(&key) {
            return true;
        }
        self.usage
            .retain(|_, u| u.concurrent > 0 || now.saturating_duration_since(u.touched) < DAY);
        let room = self.usage.len() < self.max;
        if !room {
            self.unwatched += 1;
        }
        room
    }
}

impl FraudProfile {
    fn has_number(&self, number: &str) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|p| number.starts_with(&**p))
    }

    fn applies(&self, hour: u8, number: &str) -> bool {
        let in_hours = match self.hours {
            None => true,
            Some((from, to)) if from <= to => (from..to).contains(&hour),
            Some((from, to)) => hour >= from || hour < to,
        };
        in_hours && self.has_number(number)
    }
}

impl Usage {
    fn new(now: Instant) -> Usage {
        Usage {
            minute: now,
            calls_in_minute: 0,
            calls_minute_before: 0,
            concurrent: 0,
            day: now,
            seconds: 0,
            last_number: None,
            sequential: 0,
            touched: now,
        }
    }

    fn roll(&mut self, now: Instant) {
        self.touched = now;
        let passed = now.saturating_duration_since(self.minute);
        if passed >= MINUTE {
            let next = passed < 2 * MINUTE;
            self.calls_minute_before = if next { self.calls_in_minute } else { 0 };
            self.calls_in_minute = 0;
            self.minute = if next { self.minute + MINUTE } else { now };
        }
        if now.saturating_duration_since(self.day) >= DAY {
            (self.day, self.seconds) = (now, 0);
        }
    }

    fn start(&mut self, now: Instant, number: &str) {
        self.roll(now);
        self.calls_in_minute = self.calls_in_minute.saturating_add(1);
        self.concurrent = self.concurrent.saturating_add(1);
        let digits = number.trim_start_matches('+').parse::<u64>().ok();
        let near = matches!((digits, self.last_number), (Some(a), Some(b)) if a.abs_diff(b) <= 1);
        self.sequential = if near { self.sequential.saturating_add(1) } else { 1 };
        self.last_number = digits;
    }

    fn values(&self, p: &FraudProfile) -> [(FraudKind, Threshold, u32); 4] {
        let minutes = u32::try_from(self.seconds / 60).unwrap_or(u32::MAX);
        let per_minute = self.calls_in_minute.max(self.calls_minute_before);
        [
            (FraudKind::CallsPerMinute, p.calls_per_minute, per_minute),
            (FraudKind::Concurrent, p.concurrent, self.concurrent),
            (FraudKind::TotalMinutes, p.total_minutes, minutes),
            (FraudKind::Sequential, p.sequential, self.sequential),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(warning: u32, critical: u32) -> Threshold {
        Threshold { warning: Some(warning), critical: Some(critical) }
    }

    fn severities(found: Option<Finding>) -> Option<(FraudKind, Severity, u32)> {
        found.map(|f| (f.kind, f.severity, f.value))
    }

    #[test]
    fn thresholds_warn_and_then_are_critical() {
        let t0 = Instant::now();
        let profile = FraudProfile { concurrent: at(2, 3), ..FraudProfile::default() };
        let mut f = Fraud::new(vec![profile], 10);
        assert_eq!(f.started(t0, 12, 1, "100"), None);
        let second = severities(f.started(t0, 12, 1, "200"));
        assert_eq!(second, Some((FraudKind::Concurrent, Severity::Warning, 2)));
        let third = severities(f.started(t0, 12, 1, "300"));
        assert_eq!(third, Some((FraudKind::Concurrent, Severity::Critical, 3)));
        f.ended(t0, 1, "100", Duration::ZERO);
        f.ended(t0, 1, "200", Duration::ZERO);
        assert_eq!(severities(f.started(t0, 12, 1, "400")).map(|s| s.2), Some(2));
        assert_eq!(f.started(t0, 12, 2, "100"), None);
    }

    #[test]
    fn rate_minutes_and_sequences() {
        let t0 = Instant::now();
        let profile = FraudProfile {
            calls_per_minute: at(3, 100),
            total_minutes: at(60, 120),
            sequential: at(4, 100),
            ..FraudProfile::default()
        };
        let mut f = Fraud::new(vec![profile], 10);
        let mut call = |seconds: u64, number: &str, minutes: u64| {
            let now = t0 + Duration::from_secs(seconds);
            let found = severities(f.started(now, 1, 1, number));
            f.ended(now, 1, number, Duration::from_secs(minutes * 60));
            found
        };
        assert_eq!(call(0, "+4930100", 0), None);
        assert_eq!(call(100, "+4930101", 0), None);
        assert_eq!(call(200, "+4930102", 59), None);
        let fourth = Some((FraudKind::Sequential, Severity::Warning, 4));
        assert_eq!(call(300, "+4930103", 1), fourth);
        let minutes = Some((FraudKind::TotalMinutes, Severity::Warning, 60));
        assert_eq!(call(600, "+4930999", 0), minutes);
        assert_eq!(call(90_000, "1", 0), None);
        assert_eq!(call(90_001, "5", 0), None);
        let rate = Some((FraudKind::CallsPerMinute, Severity::Warning, 3));
        assert_eq!(call(90_002, "9", 0), rate);
    }

    #[test]
    fn profiles_hold_for_their_prefixes_and_hours() {
        let profile = FraudProfile {
            prefixes: vec!["+979".into()],
            hours: Some((22, 6)),
            concurrent: at(1, 1),
            ..FraudProfile::default()
        };
        let t0 = Instant::now();
        let mut f = Fraud::new(vec![profile], 1);
        assert!(f.started(t0, 12, 1, "+979123").is_none());
        assert!(f.started(t0, 23, 1, "+49123").is_none());
        assert!(f.started(t0, 23, 1, "+979123").is_some());
        assert!(f.started(t0, 5, 2, "+979123").is_none(), "full: passes, unwatched");
        assert_eq!((f.unwatched, f.len()), (1, 1));
    }
}
