//! Text to the raw form with every problem at once, each with its line.
//!
//! serde stops at the first error. So the offending entry is taken out of the parsed document and
//! the rest is read again, until nothing is wrong any more: unknown keys, wrong types and bad
//! values of the whole file are found together. What the raw form means is not known here.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// At most this many problems are told; a file with more needs another look first.
const MAX_PROBLEMS: usize = 50;

/// One thing wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Problem {
    /// From 1; 0 where the problem has no line (the file itself).
    pub line: usize,
    pub message: String,
}

/// Turns byte offsets into lines.
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn new(text: &str) -> Lines {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i);
        Lines(newlines.collect())
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|&newline| newline < offset) + 1
    }
}

/// What [`read`] found.
pub(super) struct Reading<'a, T> {
    /// The raw form of what is left when every wrong entry is taken out; `None` when the text is
    /// no TOML.
    pub(super) raw: Option<T>,
    /// The whole document with environment variables filled in.
    pub(super) document: DeTable<'a>,
    pub(super) problems: Vec<Problem>,
}

/// What stands for `${…}`; `None` leaves it as it is.
pub(super) type Fill<'a> = &'a dyn Fn(&str) -> Option<Result<String, String>>;

/// Reads `text` as `T`. `lists` are the dotted paths where one value stands for a list of one;
/// `fill` looks up what stands in `${…}`.
pub(super) fn read<'a, T: DeserializeOwned>(
    text: &'a str,
    lines: &Lines,
    lists: &[&str],
    fill: Fill<'_>,
) -> Reading<'a, T> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let at = |span: Option<Range<usize>>| span.map_or(0, |s| lines.line(s.start));
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|e| Problem { line: at(e.span()), message: format!("not TOML: {}", e.message()) })
        .collect();
    let span = document.span();
    let mut document = document.into_inner();
    if !problems.is_empty() {
        return Reading { raw: None, document, problems };
    }
    let mut unset = Vec::new();
    substitute_table(&mut document, fill, &mut |span, message| {
        problems.push(Problem { line: lines.line(span.start), message });
        unset.push(span);
    });
    let mut rest = document.clone();
    for span in unset {
        remove_from_table(&mut rest, &span);
    }
    for path in lists {
        wrap(&mut rest, path);
    }
    while problems.len() < MAX_PROBLEMS {
        let source = Spanned::new(span.clone(), rest.clone());
        let error = match T::deserialize(toml::de::Deserializer::from(source)) {
            Ok(raw) => return Reading { raw: Some(raw), document, problems },
            Err(error) => error,
        };
        if !is_consequence(&error, &document) {
            let message = reword(error.message());
            problems.push(Problem { line: at(error.span()), message });
        }
        if !error.span().is_some_and(|span| remove_from_table(&mut rest, &span)) {
            break;
        }
    }
    Reading { raw: None, document, problems }
}

/// Whether a key is missing only because its wrong value was taken out before.
fn is_consequence(error: &toml::de::Error, document: &DeTable<'_>) -> bool {
    let message = error.message().trim();
    let key = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`'));
    match (key, error.span()) {
        (Some(key), Some(span)) => table_has(document, &span, key).unwrap_or(false),
        _ => false,
    }
}

/// Whether the table at `span` has `key`; `None` when no table is there.
fn table_has(table: &DeTable<'_>, span: &Range<usize>, key: &str) -> Option<bool> {
    let inside = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
        DeValue::Table(inner) if value.span() == *span => Some(inner.contains_key(key)),
        DeValue::Table(inner) => table_has(inner, span, key),
        _ => None,
    };
    table.values().find_map(|value| match value.get_ref() {
        DeValue::Array(items) => items.iter().find_map(inside),
        _ => inside(value),
    })
}

/// serde's words for unknown keys become ours, with the nearest known key.
fn reword(message: &str) -> String {
    let message = message.trim();
    let Some((key, rest)) = message.strip_prefix("unknown field `").and_then(|m| m.split_once('`'))
    else {
        return message.replace("missing field", "missing key").replace('`', "\"");
    };
    // Every second piece between backticks is a known key.
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let nearest = known.iter().map(|k| (distance(key, k), *k)).min();
    match nearest {
        Some((distance, nearest)) if distance <= 1 + key.len() / 4 => {
            format!("unknown key \"{key}\"; did you mean \"{nearest}\"?")
        }
        _ => format!("unknown key \"{key}\"; known here: {}", known.join(", ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Takes the innermost entry out that the span belongs to.
fn remove_from_table(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let mut hit = None;
    for (key, value) in table.iter_mut() {
        let own = covers(&value.span(), span);
        let removed = match value.get_mut() {
            DeValue::Table(inner) => remove_from_table(inner, span),
            DeValue::Array(inner) => remove_from_array(inner, span),
            _ => false,
        };
        if removed {
            return true;
        }
        if own || covers(&key.span(), span) {
            hit = Some(key.clone());
        }
    }
    hit.is_some_and(|key| table.remove(&key).is_some())
}

fn remove_from_array(array: &mut DeArray<'_>, span: &Range<usize>) -> bool {
    let mut hit = None;
    for (index, value) in array.iter_mut().enumerate() {
        let own = covers(&value.span(), span);
        let removed = match value.get_mut() {
            DeValue::Table(inner) => remove_from_table(inner, span),
            DeValue::Array(inner) => remove_from_array(inner, span),
            _ => false,
        };
        if removed {
            return true;
        }
        if own {
            hit = Some(index);
        }
    }
    let Some(hit) = hit else { return false };
    let mut kept = DeArray::new();
    for (index, value) in array.iter().enumerate() {
        if index != hit {
            kept.push(value.clone());
        }
    }
    *array = kept;
    true
}

/// Makes a list of one of the text at `path`.
fn wrap(table: &mut DeTable<'_>, path: &str) {
    let (head, tail) = path.split_once('.').map_or((path, None), |(h, t)| (h, Some(t)));
    let Some(value) = table.get_mut(head) else { return };
    let span = value.span();
    match (tail, value.get_mut()) {
        (Some(tail), DeValue::Table(inner)) => wrap(inner, tail),
        (Some(tail), DeValue::Array(items)) => {
            for item in items.iter_mut() {
                if let DeValue::Table(inner) = item.get_mut() {
                    wrap(inner, tail);
                }
            }
        }
        (None, text @ DeValue::String(_)) => {
            let mut list = DeArray::new();
            list.push(Spanned::new(span, text.clone()));
            *text = DeValue::Array(list);
        }
        (Some(_) | None, _) => {}
    }
}

type OnProblem<'a> = &'a mut dyn FnMut(Range<usize>, String);

fn substitute_table(table: &mut DeTable<'_>, fill: Fill<'_>, problem: OnProblem<'_>) {
    for (_, value) in table.iter_mut() {
        substitute(value, fill, problem);
    }
}

/// Fills `${NAME}` in, in every string of the document.
fn substitute(value: &mut Spanned<DeValue<'_>>, fill: Fill<'_>, problem: OnProblem<'_>) {
    let span = value.span();
    match value.get_mut() {
        DeValue::Table(table) => substitute_table(table, fill, problem),
        DeValue::Array(array) => {
            for item in array.iter_mut() {
                substitute(item, fill, problem);
            }
        }
        DeValue::String(text) if text.contains("${") => match expand(text, fill) {
            Ok(expanded) => *text = expanded.into(),
            Err(message) => problem(span, message),
        },
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

fn expand(text: &str, fill: Fill<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let filled = after.split_once('}').and_then(|(name, tail)| Some((fill(name)?, tail)));
        match filled {
            Some((value, tail)) => {
                out.push_str(&value?);
                rest = tail;
            }
            None => {
                out.push_str("${");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::{Surroundings, place};
    use super::*;

    #[derive(Deserialize, Debug, Default)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct File {
        node: Node,
        item: Vec<Item>,
    }

    #[derive(Deserialize, Debug, Default)]
    #[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
    struct Node {
        name: String,
        max_calls: u32,
    }

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Item {
        id: u8,
        #[serde(default)]
        list: Vec<u8>,
    }

    fn problems(text: &str) -> Vec<String> {
        let lines = Lines::new(text);
        let env = |name: &str| match name {
            "POD_IP" => Some("10.0.0.1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let base = std::path::Path::new(".");
        let around = Surroundings { base, env: &env, hostname: "node", cores: 1, interfaces: &[] };
        let fill = |name: &str| place::value(name, &around);
        let reading = read::<File>(text, &lines, &["item.list"], &fill);
        let mut problems = reading.problems;
        problems.sort();
        if let Some(file) = reading.raw {
            assert!(file.node.max_calls < 9 && file.item.iter().all(|i| i.id < 9));
            assert!(file.item.iter().all(|i| i.list.iter().all(|n| *n < 9)));
        }
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_problem_is_found_with_its_line() {
        let text = "[node]\nname = 7\nmax-call = 3\nwhatever = 1\n\n[[item]]\nlist = [1, 300, 2, \"x\"]\nid = 1\n\n[[item]]\nlist = []\n[[item]]\nid = true\n";
        assert_eq!(
            problems(text),
            [
                "line 2: invalid type: integer \"7\", expected a string",
                "line 3: unknown key \"max-call\"; did you mean \"max-calls\"?",
                "line 4: unknown key \"whatever\"; known here: name, max-calls",
                "line 7: invalid type: string \"x\", expected u8",
                "line 7: invalid value: integer \"300\", expected u8",
                "line 10: missing key \"id\"",
                "line 13: invalid type: boolean \"true\", expected u8",
            ]
        );
    }

    #[test]
    fn bad_toml_is_told_once_with_its_line() {
        let told = problems("[node]\nname = \"x\nmax-calls = 1\n");
        assert!(told[0].starts_with("line 2: not TOML: "), "{told:?}");
    }

    #[test]
    fn variables_are_filled_in_strictly() {
        let told = problems("[node]\nname = \"${POD_IP}:5060 ${1} ${x}\"\n");
        assert!(told.is_empty(), "{told:?}");
        assert_eq!(
            problems("[node]\nname = \"${NO_SUCH}\"\n[[item]]\nid=1\nlist=[]\n"),
            ["line 2: the environment variable NO_SUCH is not set"]
        );
        assert_eq!(
            problems("[node]\nname = \"${EMPTY}\"\n"),
            ["line 2: the environment variable EMPTY is empty"]
        );
        let fill = |name: &str| (name == "POD_IP").then(|| Ok("!".to_owned()));
        assert_eq!(expand("a${POD_IP}b${1}${", &fill).as_deref(), Ok("a!b${1}${"));
    }
}
