//! Longest-prefix match over telephone numbers: a compact, immutable trie, and its CSV form.
//!
//! Nodes lie breadth-first in one vector; a node is the symbols that it skips (runs without a
//! branch), a bitmap of the symbols that follow, the index of its first child and its value: 16
//! bytes. A step is one bit test and one population count. A million prefixes take about 20 MB and
//! load in about a second. What an entry leads to is
//! resolved in `table.rs`; files are opened by the caller.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

/// The longest prefix in symbols: E.164 has 15 digits, routing codes come before them.
pub const MAX_PREFIX_LEN: usize = 24;

/// Bits per symbol in a packed key; 0 ends a key, so that packed keys sort like their texts.
const SYMBOL_BITS: u32 = 5;
const NO_VALUE: u32 = u32::MAX;
/// Symbols that one node can skip.
const MAX_SKIP: u32 = 6;

/// What a prefix leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrefixEntry {
    pub target: PrefixTarget,
    /// Symbols taken off the front of the R-URI user.
    pub strip: u8,
    /// Put before it afterwards.
    pub prefix: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PrefixTarget {
    /// Name of a group or trunk.
    To(Arc<str>),
    /// Refused with 403 (`reject` in the file): blocked destinations.
    Reject,
}

/// One line that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct PrefixError {
    pub line: usize,
    pub reason: PrefixErrorReason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixErrorReason {
    #[error("want prefix,target[,strip[,prepend]]")]
    Columns,
    #[error("a prefix is 1 to {MAX_PREFIX_LEN} of 0-9 + * # a-f")]
    Prefix,
    #[error("strip is no number from 0 to {MAX_PREFIX_LEN}")]
    Strip,
    #[error("the prefix was given before")]
    Duplicate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    /// Symbols that must come before anything else here, the first in the lowest bits, 0 ends.
    skip: u32,
    /// Bit `s` is set when symbol `s` follows.
    follows: u32,
    /// Index of the child of the lowest set bit; the others come after it.
    first_child: u32,
    /// Index into the entries, or `NO_VALUE`.
    value: u32,
}

/// An immutable table of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixTable {
    nodes: Vec<Node>,
    entries: Vec<PrefixEntry>,
    len: usize,
}

impl PrefixTable {
    /// Reads lines `prefix,target[,strip[,prepend]]`. Blank lines, lines that begin with `;` or
    /// `//`, and a first line that begins with `prefix` are passed over. All wrong lines are
    /// reported together, at most `max_errors`.
    pub fn parse(text: &str, max_errors: usize) -> Result<PrefixTable, Vec<PrefixError>> {
        let mut builder = Builder::default();
        let mut errors = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            let skip = line.is_empty()
                || line.starts_with(';')
                || line.starts_with("//")
                || (index == 0 && line.starts_with("prefix"));
            if skip {
                continue;
            }
            if let Err(reason) = builder.line(line, index + 1) {
                errors.push(PrefixError { line: index + 1, reason });
                if errors.len() >= max_errors {
                    return Err(errors);
                }
            }
        }
        builder.finish(errors)
    }

    /// Builds from pairs; for inline lists and tests.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, PrefixEntry)>,
    ) -> Result<PrefixTable, Vec<PrefixError>> {
        let mut builder = Builder::default();
        let mut errors = Vec::new();
        for (index, (prefix, entry)) in pairs.into_iter().enumerate() {
            if let Err(reason) = builder.add(prefix, entry, index + 1) {
                errors.push(PrefixError { line: index + 1, reason });
            }
        }
        builder.finish(errors)
    }

    /// The entry of the longest prefix of `number`, as an index into [`PrefixTable::entries`].
    /// Visual separators (RFC 3966 §5.1.1) are passed over, an escaped `#` (`%23`) counts as one.
    pub fn lookup(&self, number: &str) -> Option<usize> {
        let mut best = NO_VALUE;
        let mut node = self.nodes.first()?;
        let mut rest = number.as_bytes();
        'nodes: loop {
            let mut skip = node.skip;
            while skip != 0 {
                match next_symbol(&mut rest) {
                    Some(symbol) if u32::from(symbol) == skip & 0x1f => skip >>= SYMBOL_BITS,
                    Some(_) | None => break 'nodes,
                }
            }
            if node.value != NO_VALUE {
                best = node.value;
            }
            let Some(symbol) = next_symbol(&mut rest) else { break };
            let bit = 1u32 << symbol;
            if node.follows & bit == 0 {
                break;
            }
            let child = node.first_child + (node.follows & (bit - 1)).count_ones();
            match self.nodes.get(child as usize) {
                Some(next) => node = next,
                None => break,
            }
        }
        (best != NO_VALUE).then_some(best as usize)
    }

    /// The distinct entries, far fewer than prefixes.
    pub fn entries(&self) -> &[PrefixEntry] {
        &self.entries
    }

    /// How many prefixes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the trie itself.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }
}

/// Takes the next symbol off; `None` at the end or at what no number has.
fn next_symbol(rest: &mut &[u8]) -> Option<u8> {
    loop {
        match *rest {
            [b'-' | b'.' | b'(' | b')', tail @ ..] => *rest = tail,
            [b'%', b'2', b'3', tail @ ..] => {
                *rest = tail;
                return symbol(b'#');
            }
            [byte, tail @ ..] => {
                *rest = tail;
                return symbol(*byte);
            }
            [] => return None,
        }
    }
}

/// 1 to 19, or `None` for a byte that no number has.
fn symbol(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0' + 1),
        b'+' => Some(11),
        b'*' => Some(12),
        b'#' => Some(13),
        b'a'..=b'f' => Some(byte - b'a' + 14),
        b'A'..=b'F' => Some(byte - b'A' + 14),
        _ => None,
    }
}

/// The symbol of a packed key at `depth`; 0 past its end.
fn symbol_at(key: u128, depth: u32) -> u8 {
    let shift = 128 - SYMBOL_BITS * (depth + 1);
    (key >> shift).to_le_bytes()[0] & 0x1f
}

/// A prefix packed from the left, 5 bits per symbol.
fn pack(prefix: &str) -> Option<u128> {
    if prefix.is_empty() || prefix.len() > MAX_PREFIX_LEN {
        return None;
    }
    let mut key = 0u128;
    for (depth, byte) in prefix.bytes().enumerate() {
        let shift = 128 - SYMBOL_BITS * (u32::try_from(depth).ok()? + 1);
        key |= u128::from(symbol(byte)?) << shift;
    }
    Some(key)
}

#[derive(Default)]
struct Builder {
    /// Packed key, entry, line.
    keys: Vec<(u128, u32, u32)>,
    entries: Vec<PrefixEntry>,
    index_of: HashMap<PrefixEntry, u32>,
    /// Entry indices by the raw text after the first comma: most lines repeat one.
    by_text: HashMap<Box<str>, u32>,
}

impl Builder {
    fn line(&mut self, line: &str, number: usize) -> Result<(), PrefixErrorReason> {
        let (prefix, rest) = line.split_once(',').ok_or(PrefixErrorReason::Columns)?;
        if let Some(&entry) = self.by_text.get(rest) {
            return self.push(unquote(prefix), entry, number);
        }
        let mut columns = rest.split(',').map(unquote);
        let target = columns.next().filter(|t| !t.is_empty()).ok_or(PrefixErrorReason::Columns)?;
        let strip = match columns.next() {
            None | Some("") => 0,
            Some(strip) => strip.parse().map_err(|_| PrefixErrorReason::Strip)?,
        };
        if usize::from(strip) > MAX_PREFIX_LEN {
            return Err(PrefixErrorReason::Strip);
        }
        let prepend = columns.next().unwrap_or("");
        if columns.next().is_some() {
            return Err(PrefixErrorReason::Columns);
        }
        let target = match target {
            "reject" => PrefixTarget::Reject,
            name => PrefixTarget::To(name.into()),
        };
        let entry = self.entry(PrefixEntry { target, strip, prefix: prepend.into() });
        self.by_text.insert(rest.into(), entry);
        self.push(unquote(prefix), entry, number)
    }

    fn add(
        &mut self,
        prefix: &str,
        entry: PrefixEntry,
        line: usize,
    ) -> Result<(), PrefixErrorReason> {
        let entry = self.entry(entry);
        self.push(prefix, entry, line)
    }

    fn entry(&mut self, entry: PrefixEntry) -> u32 {
        let next = u32::try_from(self.entries.len()).unwrap_or(NO_VALUE - 1);
        *self.index_of.entry(entry).or_insert_with_key(|entry| {
            self.entries.push(entry.clone());
            next
        })
    }

    fn push(&mut self, prefix: &str, entry: u32, line: usize) -> Result<(), PrefixErrorReason> {
        let key = pack(prefix).ok_or(PrefixErrorReason::Prefix)?;
        self.keys.push((key, entry, u32::try_from(line).unwrap_or(u32::MAX)));
        Ok(())
    }

    fn finish(mut self, mut errors: Vec<PrefixError>) -> Result<PrefixTable, Vec<PrefixError>> {
        self.keys.sort_unstable_by_key(|&(key, _, line)| (key, line));
        for pair in self.keys.windows(2) {
            if let [a, b] = pair
                && a.0 == b.0
            {
                let reason = PrefixErrorReason::Duplicate;
                errors.push(PrefixError { line: b.2 as usize, reason });
            }
        }
        if !errors.is_empty() {
            errors.sort_by_key(|e| e.line);
            return Err(errors);
        }
        let nodes = layout(&self.keys);
        Ok(PrefixTable { nodes, entries: self.entries, len: self.keys.len() })
    }
}

fn unquote(column: &str) -> &str {
    let column = column.trim();
    column.strip_prefix('"').and_then(|c| c.strip_suffix('"')).unwrap_or(column)
}

/// Lays sorted, distinct keys out breadth-first. A node's keys are a range of `keys` that agree in
/// their first `depth` symbols; nodes and ranges are made in the same order, so that the ranges are
/// the queue of work.
fn layout(keys: &[(u128, u32, u32)]) -> Vec<Node> {
    let empty = Node { skip: 0, follows: 0, first_child: 0, value: NO_VALUE };
    let mut nodes = vec![empty];
    let mut queue = VecDeque::from([(0..keys.len(), 0u32)]);
    let mut index = 0;
    while let Some((range, mut depth)) = queue.pop_front() {
        let first_child = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let mut node = Node { first_child, ..empty };
        let symbol_of = |at: usize, depth| keys.get(at).map_or(0, |k| symbol_at(k.0, depth));
        let mut skipped = 0;
        while skipped < MAX_SKIP && !range.is_empty() {
            // The keys are sorted: where the first and the last agree, all do.
            let symbol = symbol_of(range.start, depth);
            if symbol == 0 || symbol != symbol_of(range.end - 1, depth) {
                break;
            }
            node.skip |= u32::from(symbol) << (SYMBOL_BITS * skipped);
            skipped += 1;
            depth += 1;
        }
        let mut at = range.start;
        if at < range.end && symbol_of(at, depth) == 0 {
            node.value = keys.get(at).map_or(NO_VALUE, |k| k.1);
            at += 1;
        }
        while at < range.end {
            let symbol = symbol_of(at, depth);
            let same = |k: &(u128, u32, u32)| symbol_at(k.0, depth) == symbol;
            let run = keys.get(at..range.end).map_or(0, |keys| keys.partition_point(same));
            node.follows |= 1 << symbol;
            nodes.push(empty);
            queue.push_back((at..at + run, depth + 1));
            at += run;
        }
        if let Some(slot) = nodes.get_mut(index) {
            *slot = node;
        }
        index += 1;
    }
    nodes.shrink_to_fit();
    nodes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to(name: &str) -> PrefixEntry {
        PrefixEntry { target: PrefixTarget::To(name.into()), strip: 0, prefix: "".into() }
    }

    fn found<'a>(table: &'a PrefixTable, number: &str) -> Option<&'a PrefixEntry> {
        table.lookup(number).map(|i| &table.entries()[i])
    }

    #[test]
    fn the_longest_prefix_wins() {
        let text = "prefix,target,strip,prepend\n+49,de\n+4930,berlin,3,0\n\n; note\n\"00\",\"intl\"\n+49900,reject\n#9,hash\n";
        let table = PrefixTable::parse(text, 10).unwrap();
        assert_eq!(table.len(), 5);
        assert_eq!(found(&table, "+4989123"), Some(&to("de")));
        let berlin =
            PrefixEntry { target: PrefixTarget::To("berlin".into()), strip: 3, prefix: "0".into() };
        assert_eq!(found(&table, "+4930123"), Some(&berlin));
        assert_eq!(found(&table, "+49-30.123"), Some(&berlin));
        assert_eq!(found(&table, "+49900123").unwrap().target, PrefixTarget::Reject);
        assert_eq!(found(&table, "0033"), Some(&to("intl")));
        assert_eq!(found(&table, "%2391"), Some(&to("hash")));
        assert_eq!(found(&table, "+4"), None);
        assert_eq!(found(&table, ""), None);
        assert_eq!(found(&table, "alice"), None);
    }

    #[test]
    fn all_wrong_lines_are_told() {
        let text = "+49,de\nabc\n4x,de\n1,de,x\n+49,at\n1,a,1,2,3\n2,\n";
        let errors: Vec<String> =
            PrefixTable::parse(text, 10).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "line 2: want prefix,target[,strip[,prepend]]",
                "line 3: a prefix is 1 to 24 of 0-9 + * # a-f",
                "line 4: strip is no number from 0 to 24",
                "line 5: the prefix was given before",
                "line 6: want prefix,target[,strip[,prepend]]",
                "line 7: want prefix,target[,strip[,prepend]]",
            ]
        );
        assert_eq!(PrefixTable::parse(text, 2).unwrap_err().len(), 2);
    }

    #[test]
    fn the_longest_possible_prefix() {
        let long = "123456789012345678901234";
        let table = PrefixTable::from_pairs([("1", to("short")), (long, to("long"))]).unwrap();
        assert_eq!(found(&table, &format!("{long}5")), Some(&to("long")));
        assert_eq!(found(&table, &long[..23]), Some(&to("short")));
        assert!(PrefixTable::from_pairs([(format!("{long}5").as_str(), to("x"))]).is_err());
    }

    #[test]
    fn an_empty_table_finds_nothing() {
        let table = PrefixTable::parse("", 1).unwrap();
        assert!(table.is_empty());
        assert_eq!(table.lookup("123"), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            prefixes in prop::collection::btree_set("[0-1]{1,2}[0-3+]{0,14}", 0..60),
            tails in prop::collection::vec(("[0-3+]{0,9}", 0usize..60), 1..30),
        ) {
            let table = PrefixTable::from_pairs(
                prefixes.iter().map(|p| (p.as_str(), to(p))),
            ).unwrap();
            let some: Vec<&String> = prefixes.iter().collect();
            for (tail, at) in &tails {
                let head = some.get(*at).map_or("", |p| p.as_str());
                let number = &format!("{head}{tail}");
                let longest = prefixes.iter()
                    .filter(|p| number.starts_with(p.as_str()))
                    .max_by_key(|p| p.len());
                prop_assert_eq!(found(&table, number).cloned(), longest.map(|p| to(p)));
            }
        }
    }
}
