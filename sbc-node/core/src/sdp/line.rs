//! One `k=value` line, and how a list of them is searched and changed.

use std::borrow::Cow;

/// A line of a description. `value` never holds CR, LF or NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The type letter.
    pub kind: u8,
    value: Cow<'a, str>,
}

impl<'a> Line<'a> {
    /// A line; CR, LF and NUL in `value` become spaces.
    pub fn new(kind: u8, value: impl Into<Cow<'a, str>>) -> Self {
        let mut value = value.into();
        if memchr::memchr3(b'\r', b'\n', 0, value.as_bytes()).is_some() {
            value = Cow::Owned(value.replace(['\r', '\n', '\0'], " "));
        }
        Line { kind, value }
    }

    /// A line whose value is known to hold no CR, LF or NUL.
    pub(super) fn clean(kind: u8, value: Cow<'a, str>) -> Self {
        debug_assert!(!value.contains(['\r', '\n', '\0']));
        Line { kind, value }
    }

    pub fn value(&self) -> &str {
        &self.value
    }

    /// Name and value of an attribute (`a=name:value`, `a=name`); `None` for other lines.
    pub fn attribute(&self) -> Option<(&str, &str)> {
        if self.kind != b'a' {
            return None;
        }
        let value: &str = &self.value;
        let colon = value.bytes().position(|b| b == b':').unwrap_or(value.len());
        Some((value.get(..colon).unwrap_or(""), value.get(colon + 1..).unwrap_or("")))
    }

    /// Whether this is attribute `name`. Names are case-sensitive (RFC 8866 §5.13), but peers are
    /// not.
    pub fn is_attribute(&self, name: &str) -> bool {
        let (value, name) = (self.value.as_bytes(), name.as_bytes());
        self.kind == b'a'
            && matches!(value.get(name.len()), None | Some(b':'))
            && value.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name))
    }

    pub(super) fn into_owned(self) -> Line<'static> {
        Line { kind: self.kind, value: Cow::Owned(self.value.into_owned()) }
    }
}

/// Value of the first attribute `name`; `Some("")` when it has none.
pub(super) fn attribute<'l>(lines: &'l [Line<'_>], name: &str) -> Option<&'l str> {
    let line = lines.iter().find(|l| l.is_attribute(name))?;
    Some(line.value.get(name.len() + 1..).unwrap_or(""))
}

/// Position of `kind` in the order that RFC 8866 §9 prescribes within a section.
fn rank(kind: u8) -> usize {
    b"vosiuepcbtrzka".iter().position(|k| *k == kind).unwrap_or(usize::MAX)
}

/// Replaces the first line of `kind` (drops further ones), or inserts it at its place.
pub(super) fn set<'a>(lines: &mut Vec<Line<'a>>, line: Line<'a>) {
    let kind = line.kind;
    match lines.iter().position(|l| l.kind == kind) {
        Some(at) => {
            if let Some(slot) = lines.get_mut(at) {
                *slot = line;
            }
            let mut index = 0;
            lines.retain(|l| {
                index += 1;
                l.kind != kind || index - 1 == at
            });
        }
        None => {
            let at = lines.iter().position(|l| rank(l.kind) > rank(kind)).unwrap_or(lines.len());
            lines.insert(at, line);
        }
    }
}
