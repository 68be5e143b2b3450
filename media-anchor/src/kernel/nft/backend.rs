//! The nftables way behind [`Backend`].
//!
//! It ties the ruleset to the element socket; it decides nothing.

use super::super::backend::{Backend, CommitError, Device, Fault, Op};
use super::super::element::{Counters, Key};
use super::elements::{Elements, Map};
use super::ruleset::{
    FIRST_MAX, delete_chain, delete_table, relay_chain, relay_sets, replace_table,
};

/// One netdev table and its sockets.
pub(crate) struct Nft {
    table: String,
    size: u32,
    elements: Elements,
    /// A socket of its own, so that a listing and the changes in between don't mix.
    listing: Elements,
    /// The map being listed.
    listed: Option<Map>,
}

impl Nft {
    /// Makes the table; it may hold `size` elements per family.
    pub(crate) fn open(table: &str, size: u32) -> Result<Self, Fault> {
        let mut nft = Nft {
            table: table.to_owned(),
            size,
            elements: Elements::open(table, size.min(FIRST_MAX))?,
            listing: Elements::open(table, size.min(FIRST_MAX))?,
            listed: None,
        };
        nft.reset()?;
        Ok(nft)
    }

    fn begin_listing(&mut self, map: Map) -> Result<Map, Fault> {
        self.listing.start_listing(map)?;
        self.listed = Some(map);
        Ok(map)
    }
}

impl Backend for Nft {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn checks_length(&self) -> bool {
        false
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.listed = None;
        self.elements.forget();
        self.elements.run(&replace_table(&self.table, &relay_sets(self.size)).finalize())
    }

    fn attach(&mut self, device: &Device) -> Result<(), Fault> {
        self.detach(&device.name)?;
        self.elements.run(&relay_chain(&self.table, device).finalize())
    }

    fn detach(&mut self, name: &str) -> Result<(), Fault> {
        match self.elements.run(&delete_chain(&self.table, name).finalize()) {
            // The kernel takes the chain away with its device.
            Err(Fault::Missing | Fault::NoDevice) => Ok(()),
            other => other,
        }
    }

    fn commit(&mut self, ops: &[Op], done: &mut Vec<Option<Counters>>) -> Result<(), CommitError> {
        self.elements.commit(ops, done)
    }

    fn read(&mut self, keys: &[Key], out: &mut Vec<Option<Counters>>) -> Result<(), Fault> {
        self.elements.read(keys, out)
    }

    fn stands(&mut self) -> Result<bool, Fault> {
        self.elements.table_stands()
    }

    fn list(&mut self, keys: &mut Vec<Key>) -> Result<bool, Fault> {
        let map = match self.listed {
            Some(map) => map,
            None => self.begin_listing(Map::ALL[0])?,
        };
        let before = keys.len();
        let done = self.listing.next_listed(keys)?;
        if map == Map::Other {
            self.elements.seen_elsewhere(&keys[before..]);
        }
        if !done {
            return Ok(false);
        }
        let next = Map::ALL.into_iter().skip_while(|m| *m != map).nth(1);
        self.listed = None;
        match next {
            Some(next) => self.begin_listing(next).map(|_| false),
            None => Ok(true),
        }
    }

    fn remove(&mut self) {
        match self.elements.run(&delete_table(&self.table).finalize()) {
            Ok(()) | Err(Fault::Missing) => {}
            Err(fault) => tracing::warn!(table = self.table, %fault, "kernel table not removed"),
        }
    }
}
