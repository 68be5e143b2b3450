//! `sbcctl users`: who may register. A password is turned into HA1 here and goes no further.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use nix::sys::termios::{self, LocalFlags, SetArg};
use sbc_core::digest::Algorithm;
use sbc_core::routing::Secret;
use sbc_proto::admin::v1 as pb;
use sbc_proto::admin::v1::users_client::UsersClient;
use tonic::transport::Channel;

use super::run::{Done, show};
use super::{Failure, output};
use crate::users::file::{Edit, Row, change, rows};

#[derive(Subcommand)]
pub(super) enum Users {
    /// Add a user; the password is asked for, or read from standard input.
    Add {
        name: String,
        #[command(flatten)]
        how: How,
        /// Address of record, `user` or `user@domain`; the name at every domain unless given.
        #[arg(long = "address")]
        addresses: Vec<String>,
        /// Number or other name that rings the first address.
        #[arg(long = "alias")]
        aliases: Vec<String>,
    },
    /// Give a user another password.
    Passwd {
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Take a user out; its registrations run out by themselves.
    Remove {
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// The users that the node knows, or those of a file.
    List {
        /// Only names that contain this.
        #[arg(default_value = "")]
        filter: String,
        /// At most so many.
        #[arg(long, default_value_t = 1_000)]
        limit: u32,
        #[command(flatten)]
        place: Place,
    },
}

/// Which file.
#[derive(clap::Args)]
pub(super) struct Place {
    /// A file of users to work on by itself; no node is asked or told.
    #[arg(long)]
    file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct How {
    #[command(flatten)]
    place: Place,
    /// Realm of a file's users; a node knows its own.
    #[arg(long, requires = "file")]
    realm: Option<String>,
    /// What to make HA1 for. Some phones (libre 1.1) fail where SHA-256 is offered at all.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Hash::Md5, Hash::Sha256])]
    algorithms: Vec<Hash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Hash {
    Md5,
    Sha256,
}

impl Users {
    fn file(&self) -> Option<&PathBuf> {
        match self {
            Users::Add { how, .. } | Users::Passwd { how, .. } => how.place.file.as_ref(),
            Users::Remove { place, .. } | Users::List { place, .. } => place.file.as_ref(),
        }
    }
}

/// What needs no node; `None` for the rest.
pub(super) fn local(command: &Users, json: bool) -> Option<Done> {
    let file = command.file()?;
    let changed = |edit| change(file, &edit, |_| Ok(())).map_err(|e| refused(&e));
    Some(match command {
        Users::Add { name, how, addresses, aliases } => user(name, how, how.realm.as_deref())
            .and_then(|row| {
                let (addresses, aliases) = (addresses.clone(), aliases.clone());
                changed(Edit::Add(Row { addresses, aliases, ..row }))
            }),
        Users::Passwd { name, how } => {
            user(name, how, how.realm.as_deref()).and_then(|row| changed(Edit::Passwd(row)))
        }
        Users::Remove { name, .. } => changed(Edit::Remove(name.clone())),
        Users::List { filter, limit, .. } => list_file(file, filter, *limit, json),
    })
}

pub(super) async fn run(channel: Channel, command: Users, json: bool) -> Done {
    let mut client = UsersClient::new(channel);
    match command {
        Users::List { filter, limit, .. } => {
            let reply = client.list(pb::ListUsersRequest { limit, filter }).await?.into_inner();
            show(json, &reply, list)
        }
        Users::Remove { name, .. } => {
            let reply = client.remove(pb::RemoveUserRequest { name }).await?.into_inner();
            show(json, &reply, |_| println!("removed"))
        }
        Users::Add { name, how, addresses, aliases } => {
            let realm = realm(&mut client).await?;
            let row = Row { addresses, aliases, ..user(&name, &how, Some(&realm))? };
            put(&mut client, row, true, json).await
        }
        Users::Passwd { name, how } => {
            let realm = realm(&mut client).await?;
            put(&mut client, user(&name, &how, Some(&realm))?, false, json).await
        }
    }
}

async fn realm(client: &mut UsersClient<Channel>) -> Result<String, Failure> {
    let request = pb::ListUsersRequest { limit: 1, filter: String::new() };
    let realm = client.list(request).await?.into_inner().realm;
    match realm.is_empty() {
        true => Err(Failure::Refused("the registrar asks nobody for a password".to_owned())),
        false => Ok(realm),
    }
}

async fn put(client: &mut UsersClient<Channel>, row: Row, create: bool, json: bool) -> Done {
    let request = pb::PutUserRequest {
        name: row.name,
        ha1_md5: row.md5.unwrap_or_default(),
        ha1_sha256: row.sha256.unwrap_or_default(),
        addresses: row.addresses,
        aliases: row.aliases,
        create,
        realm: row.realm,
    };
    let reply = client.put(request).await?.into_inner();
    show(json, &reply, |_| println!("{}", if create { "added" } else { "changed" }))
}

fn refused(why: &impl ToString) -> Failure {
    Failure::Refused(why.to_string())
}

/// A user with HA1 of a password that is asked for.
fn user(name: &str, how: &How, realm: Option<&str>) -> Result<Row, Failure> {
    let realm = realm.ok_or_else(|| refused(&"--file needs --realm"))?;
    let password = password(name)?;
    let ha1 = |hash, algorithm: Algorithm| {
        how.algorithms.contains(&hash).then(|| algorithm.ha1(name, realm, password.expose()))
    };
    let row = Row {
        name: name.to_owned(),
        realm: realm.to_owned(),
        md5: ha1(Hash::Md5, Algorithm::Md5),
        sha256: ha1(Hash::Sha256, Algorithm::Sha256),
        ..Row::default()
    };
    row.check().map_err(|e| refused(&e))?;
    Ok(row)
}

/// Asked for twice on a terminal, which shows nothing; otherwise the first line of standard input.
fn password(name: &str) -> Result<Secret, Failure> {
    if !std::io::stdin().is_terminal() {
        return line();
    }
    let hidden = Hidden::new().map_err(|e| refused(&e))?;
    let first = hidden.ask(&format!("Password of {name}: "))?;
    let again = hidden.ask("Once more: ")?;
    match first == again {
        true => Ok(first),
        false => Err(refused(&"the two are not the same")),
    }
}

fn line() -> Result<Secret, Failure> {
    let mut text = String::new();
    std::io::stdin().lock().read_line(&mut text).map_err(|e| refused(&e))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(refused(&"an empty password")),
        text => Ok(Secret::new(text)),
    }
}

/// The terminal without echo, until dropped.
struct Hidden(termios::Termios);

impl Hidden {
    fn new() -> nix::Result<Hidden> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin)?;
        let mut quiet = before.clone();
        // An interrupt in between would leave the terminal mute: it is a character like others.
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        quiet.local_flags.insert(LocalFlags::ECHONL);
        termios::tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Hidden(before))
    }

    fn ask(&self, prompt: &str) -> Result<Secret, Failure> {
        eprint!("{prompt}");
        std::io::stderr().flush().map_err(|e| refused(&e))?;
        let text = line()?;
        match text.expose().contains('\u{3}') {
            true => Err(refused(&"interrupted")),
            false => Ok(text),
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Nothing is left to be done about a terminal that went away.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &self.0);
    }
}

fn list(reply: &pb::ListUsersReply) {
    let mut table = output::table(&["user", "addresses", "aliases", "ha1", "from"]);
    for user in &reply.users {
        table.add_row([
            user.name.as_str(),
            &user.addresses.join(" "),
            &user.aliases.join(" "),
            &user.algorithms.join(" "),
            if user.fixed { "configuration" } else { "file" },
        ]);
    }
    println!("{table}");
    println!("{} users, realm \"{}\"", reply.total, reply.realm);
}

/// A file as a list, for `--file`.
fn list_file(file: &PathBuf, filter: &str, limit: u32, json: bool) -> Done {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|e| refused(&format!("{}: {e}", file.display())))?;
    let (rows, faults) = rows(&text);
    let mut reply = pb::ListUsersReply::default();
    for (_, row) in rows.into_iter().filter(|(_, row)| row.name.contains(filter)) {
        reply.total += 1;
        reply.realm = row.realm;
        if reply.users.len() < usize::try_from(limit).unwrap_or(usize::MAX) {
            let has = [("MD5", row.md5.is_some()), ("SHA-256", row.sha256.is_some())];
            reply.users.push(pb::UserEntry {
                name: row.name,
                addresses: row.addresses,
                aliases: row.aliases,
                algorithms: has.iter().filter(|(_, has)| *has).map(|(a, _)| (*a).into()).collect(),
                fixed: false,
            });
        }
    }
    show(json, &reply, list)?;
    match faults.first() {
        Some(fault) => Err(refused(&format!("{}: {fault}", file.display()))),
        None => Ok(()),
    }
}
