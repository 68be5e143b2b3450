//! A file of users: one line each, written anew as a whole.
//!
//! ```text
//! # a comment
//! alice example.com md5=HEX sha256=HEX addresses=alice,a.smith aliases=+4930123
//! ```
//!
//! Name and realm of the digest, then what there is of HA1 (never a password), addresses of record
//! and aliases. The realm stands in every line because an HA1 is good for no other.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Owner only: an HA1 is as good as the password.
const MODE: u32 = 0o600;

/// One user as the file has it. No `Debug`: it holds credentials.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Row {
    pub name: String,
    pub realm: String,
    pub md5: Option<String>,
    pub sha256: Option<String>,
    pub addresses: Vec<String>,
    pub aliases: Vec<String>,
}

/// What is wrong with a line; line 0 is the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub message: String,
}

impl Fault {
    pub(super) fn whole(message: String) -> Fault {
        Fault { line: 0, message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("the user \"{0}\" is there already")]
    Taken(String),
    #[error("there is no user \"{0}\" in the file")]
    Unknown(String),
    #[error("{0}")]
    Bad(String),
}

/// One change of a file.
pub enum Edit {
    Add(Row),
    /// Other credentials; addresses and aliases stay.
    Passwd(Row),
    Remove(String),
}

/// The users of a text with their lines, and what is wrong with it.
pub fn rows(text: &str) -> (Vec<(usize, Row)>, Vec<Fault>) {
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for (n, line) in text.lines().enumerate().filter(|(_, l)| is_row(l)) {
        match row(line) {
            Ok(row) => rows.push((n + 1, row)),
            Err(message) => faults.push(Fault { line: n + 1, message }),
        }
    }
    (rows, faults)
}

fn is_row(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}

fn name_of(line: &str) -> Option<&str> {
    line.split_ascii_whitespace().next().filter(|_| is_row(line))
}

fn row(line: &str) -> Result<Row, String> {
    let mut words = line.split_ascii_whitespace();
    let (Some(name), Some(realm)) = (words.next(), words.next()) else {
        return Err("a user has a name and a realm".to_owned());
    };
    let mut row = Row { name: name.to_owned(), realm: realm.to_owned(), ..Row::default() };
    for word in words {
        let (key, value) = word.split_once('=').ok_or(format!("\"{word}\" is no KEY=VALUE"))?;
        let list = || value.split(',').filter(|v| !v.is_empty()).map(str::to_owned).collect();
        match key {
            "md5" => row.md5 = Some(value.to_ascii_lowercase()),
            "sha256" => row.sha256 = Some(value.to_ascii_lowercase()),
            "addresses" => row.addresses = list(),
            "aliases" => row.aliases = list(),
            _ => return Err(format!("\"{key}\" is none of md5, sha256, addresses and aliases")),
        }
    }
    row.check()?;
    Ok(row)
}

impl Row {
    /// # Errors
    /// What no line of a file may hold.
    pub fn check(&self) -> Result<(), String> {
        let Row { name, realm, .. } = self;
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() || b >= 0x80)
        };
        if !plain(name) || name.starts_with('#') || name.contains(['@', '"', '\\', ':', '=', ',']) {
            return Err(format!("\"{name}\" is no user name"));
        }
        if !plain(realm) || realm.contains(['"', '\\']) {
            return Err(format!("\"{realm}\" is no realm of a users' file"));
        }
        for (hex, digits) in [(&self.md5, 32), (&self.sha256, 64)] {
            let good = |h: &String| h.len() == digits && h.bytes().all(|b| b.is_ascii_hexdigit());
            if !hex.as_ref().is_none_or(good) {
                return Err(format!("an HA1 of this kind has {digits} hexadecimal digits"));
            }
        }
        if self.md5.is_none() && self.sha256.is_none() {
            return Err(format!("user \"{name}\" has neither md5 nor sha256"));
        }
        match self.addresses.iter().chain(&self.aliases).find(|a| !plain(a) || a.contains(',')) {
            Some(bad) => Err(format!("\"{bad}\" is no address")),
            None => Ok(()),
        }
    }

    fn line(&self) -> String {
        let mut line = format!("{} {}", self.name, self.realm);
        let list = |all: &[String]| (!all.is_empty()).then(|| all.join(","));
        let parts = [
            ("md5", self.md5.clone()),
            ("sha256", self.sha256.clone()),
            ("addresses", list(&self.addresses)),
            ("aliases", list(&self.aliases)),
        ];
        for (key, value) in parts {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        line
    }
}

/// The text after a change. Other lines, comments among them, stay as they are.
///
/// # Errors
/// The user is there already or is not there; a row that makes no sense.
pub fn edited(text: &str, edit: &Edit) -> Result<String, EditError> {
    let name = match edit {
        Edit::Add(row) | Edit::Passwd(row) => {
            row.check().map_err(EditError::Bad)?;
            &row.name
        }
        Edit::Remove(name) => name,
    };
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| name_of(line) == Some(name));
    match (edit, at) {
        (Edit::Add(_), Some(_)) => return Err(EditError::Taken(name.clone())),
        (Edit::Add(new), None) => lines.push(new.line()),
        (Edit::Passwd(_) | Edit::Remove(_), None) => return Err(EditError::Unknown(name.clone())),
        (Edit::Passwd(new), Some(at)) => {
            let Some(line) = lines.get_mut(at) else { return Ok(text.to_owned()) };
            let old = row(line).map_err(EditError::Bad)?;
            *line = Row { addresses: old.addresses, aliases: old.aliases, ..new.clone() }.line();
        }
        (Edit::Remove(_), Some(at)) => drop(lines.remove(at)),
    }
    let mut text = lines.join("\n");
    text.push('\n');
    Ok(text)
}

/// Changes a file in place: whoever reads it sees the old text or the new one. Where it was is kept
/// as its owner and group; others are never let in.
///
/// # Errors
/// See [`edited`]; or the file cannot be read or written. `accept` may refuse the new text.
pub fn change(
    path: &Path,
    edit: &Edit,
    accept: impl FnOnce(&str) -> Result<(), String>,
) -> Result<(), EditError> {
    let io = |e| EditError::Io(path.to_owned(), e);
    let _alone = alone(path).map_err(io)?;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound && matches!(edit, Edit::Add(_)) => {
            String::new()
        }
        Err(e) => return Err(io(e)),
    };
    let new = edited(&text, edit)?;
    accept(&new).map_err(EditError::Bad)?;
    replace(path, &new).map_err(io)
}

/// Held while the file is changed; two changes at once do not lose each other.
fn alone(path: &Path) -> io::Result<nix::fcntl::Flock<File>> {
    let lock = beside(path, ".lock");
    let file = OpenOptions::new().create(true).append(true).mode(MODE).open(lock)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, error)| error.into())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link stays one: what it leads to is replaced.
    let path = match std::fs::canonicalize(path) {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(e) => return Err(e),
    };
    let fresh = beside(&path, ".new");
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&fresh)?;
    file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
    if let Ok(old) = std::fs::metadata(&path) {
        let made = file.metadata()?;
        if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, &path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, md5: &str) -> Row {
        Row {
            name: name.to_owned(),
            realm: "example.com".to_owned(),
            md5: Some(md5.to_owned()),
            ..Row::default()
        }
    }

    #[test]
    fn a_change_touches_one_line() {
        let (one, two) = ("1".repeat(32), "2".repeat(32));
        let text = format!(
            "# ours\nbob example.com md5={one} aliases=+4930,+4931\n\nabc r sha256={}\n",
            "a".repeat(64)
        );
        let added = edited(&text, &Edit::Add(new("alice", &one))).ok().unwrap();
        assert_eq!(added, format!("{text}alice example.com md5={one}\n"));
        let other = edited(&added, &Edit::Passwd(new("bob", &two))).ok().unwrap();
        assert_eq!(
            other,
            added.replace(
                &format!("bob example.com md5={one}"),
                &format!("bob example.com md5={two}")
            )
        );
        let gone = edited(&other, &Edit::Remove("bob".to_owned())).ok().unwrap();
        assert_eq!(gone.lines().count(), 4);
        assert!(gone.starts_with("# ours\n\nabc r "), "{gone}");
        let refused = |edit| edited(&added, &edit).err().map(|e| e.to_string()).unwrap();
        assert_eq!(refused(Edit::Add(new("bob", &one))), "the user \"bob\" is there already");
        assert_eq!(
            refused(Edit::Remove("ours".to_owned())),
            "there is no user \"ours\" in the file"
        );
        assert_eq!(refused(Edit::Add(new("a b", &one))), "\"a b\" is no user name");
        assert_eq!(
            refused(Edit::Add(new("x", "12"))),
            "an HA1 of this kind has 32 hexadecimal digits"
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let one = "1".repeat(32);
        let text = format!(
            "alice\nbob r md5={one} x=1\n# c\ncarol r\ndave r md5={one} y\nok r md5={one}\n"
        );
        let (rows, faults) = rows(&text);
        assert_eq!(rows.len(), 1);
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "line 1: a user has a name and a realm",
                "line 2: \"x\" is none of md5, sha256, addresses and aliases",
                "line 4: user \"carol\" has neither md5 nor sha256",
                "line 5: \"y\" is no KEY=VALUE",
            ]
        );
    }

    #[test]
    fn the_file_is_its_owners_alone_and_a_refused_text_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let one = "1".repeat(32);
        change(&path, &Edit::Add(new("alice", &one)), |_| Ok(())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        change(&path, &Edit::Add(new("bob", &one)), |_| Ok(())).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read_to_string(&path).unwrap();
        let refuse = |_: &str| Err("no".to_owned());
        assert!(change(&path, &Edit::Remove("bob".to_owned()), refuse).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        assert!(!dir.path().join("users.new").exists());
    }
}
