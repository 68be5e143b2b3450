//! Elements over an nfnetlink socket: transactions, counters by key, listings, and what the kernel
//! says to them.
//!
//! Which elements there should be is decided above; sets and chains are made by `ruleset.rs`.

use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};
use nftnl::FinalizedBatch;
use nix::errno::Errno;

use super::super::backend::{CommitError, Fault, Op};
use super::super::element::{Action, Counters, Element, Key};
use super::super::netlink::{
    Attrs, Bus, MsgBuf, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST,
    Nest, NetlinkSocket, NlMsgView, RecvError, be64, ne32,
};
use super::ruleset::{COMMON_DSCP, MAP4, MAP4_OTHER, MAP6, NETDEV, data4, msg_type};

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// Batch messages name the nf_tables subsystem in the resource id (network order).
const BATCH: [u8; 4] = [0, 0, 0, 10];

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_EXPR: u16 = 7;
const ELEM_EXPRESSIONS: u16 = 11;
const DATA_VALUE: u16 = 1;
const EXPR_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
/// NLMSGERR_ATTR_OFFS: where in the request the refused attribute stands.
const ERR_OFFSET: u16 = 2;
/// nlmsgerr: the errno and the request's header.
const ERR_FIXED: usize = 20;
const NLM_F_CAPPED: u16 = 0x100;

/// Elements of one message; of IPv6 about 12 KiB, of the 64 KiB that a nest may have.
const PER_MESSAGE: usize = 100;

/// The maps of a relay's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// IPv4 with the common code point, as long as there is room.
    Common,
    /// Other IPv4.
    Other,
    V6,
}

impl Map {
    pub(super) const ALL: [Map; 3] = [Map::Common, Map::Other, Map::V6];

    /// Where an element is to lie if there is room for it in [`Map::Common`], or not.
    fn of(element: &Element, room: bool) -> Map {
        match (element.key.is_v6(), room && element.action.dscp == COMMON_DSCP) {
            (true, _) => Map::V6,
            (false, true) => Map::Common,
            (false, false) => Map::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Map::Common => MAP4,
            Map::Other => MAP4_OTHER,
            Map::V6 => MAP6,
        }
    }
}

/// The socket of one table.
pub(super) struct Elements {
    socket: NetlinkSocket,
    table: String,
    buf: MsgBuf,
    /// Keys in [`Map::Other`]: a key alone does not tell its map.
    others: HashSet<Key>,
    /// How many are in [`Map::Common`]; at least, after a transaction whose outcome was lost.
    common: u32,
    common_max: u32,
}

/// A message of a transaction: its sequence number and where its elements stand in it.
struct Sent {
    seq: u32,
    /// Offset of each element from the start of the message, with the operation's index.
    offsets: Vec<(usize, usize)>,
}

impl Elements {
    /// A socket for the table; its first map holds `common_max`.
    pub(super) fn open(table: &str, common_max: u32) -> Result<Self, Fault> {
        let socket = NetlinkSocket::open(Bus::Netfilter, 0)
            .map_err(|e| fault(Errno::try_from(e).unwrap_or(Errno::EIO)))?;
        Ok(Elements {
            socket,
            table: table.to_owned(),
            buf: MsgBuf::new(),
            others: HashSet::new(),
            common: 0,
            common_max,
        })
    }

    /// Runs a batch of nftnl's as one transaction.
    pub(super) fn run(&mut self, batch: &FinalizedBatch) -> Result<(), Fault> {
        let bytes = batch.iter().collect::<Vec<_>>().concat();
        self.socket.send_bytes(&bytes).map_err(fault)?;
        let mut first = None;
        loop {
            match self.socket.recv() {
                Ok(messages) => {
                    for message in messages {
                        if let Some(errno) = message.errno().filter(|e| *e != 0) {
                            first.get_or_insert(Errno::from_raw(errno));
                        }
                    }
                }
                Err(RecvError::Empty) => break,
                Err(RecvError::Overrun) => return Err(Fault::NoRoom),
                Err(RecvError::Errno(errno)) => return Err(fault(errno)),
            }
        }
        first.map_or(Ok(()), |errno| Err(fault(errno)))
    }

    /// The maps are new and empty.
    pub(super) fn forget(&mut self) {
        self.others.clear();
        self.common = 0;
    }

    /// A listing showed these keys in [`Map::Other`].
    pub(super) fn seen_elsewhere(&mut self, keys: &[Key]) {
        self.others.extend(keys);
    }

    /// Where an element with that key is, if it is anywhere.
    fn map_of(&self, key: &Key) -> Map {
        match (key.is_v6(), self.others.contains(key)) {
            (true, _) => Map::V6,
            (false, true) => Map::Other,
            (false, false) => Map::Common,
        }
    }

    /// Where each element that is added shall lie, and each key that is deleted lies.
    fn places(&self, ops: &[Op]) -> Vec<Map> {
        let mut common = self.common;
        let place = |op: &Op| match op {
            Op::Delete(key) => self.map_of(key),
            Op::Add(element) => {
                let map = Map::of(element, common < self.common_max);
                common += u32::from(map == Map::Common);
                map
            }
        };
        ops.iter().map(place).collect()
    }

    /// Keeps in mind what is where after a transaction.
    fn note(&mut self, ops: &[Op], places: &[Map], result: Result<(), CommitError>) {
        match result {
            Ok(()) => {
                let mut all: Vec<(&Op, Map)> = ops.iter().zip(places.iter().copied()).collect();
                // As the kernel does them: what is deleted and added again is there.
                all.sort_by_key(|(op, _)| matches!(op, Op::Add(_)));
                for (op, map) in all {
                    match op {
                        Op::Delete(key) => self.gone(key),
                        Op::Add(e) if map == Map::Other => drop(self.others.insert(e.key)),
                        Op::Add(e) => {
                            self.others.remove(&e.key);
                            self.common += u32::from(map == Map::Common);
                        }
                    }
                }
            }
            Err(CommitError { at: Some(at), fault: Fault::Missing }) => {
                if let Some(Op::Delete(key)) = ops.get(at) {
                    self.gone(key);
                }
            }
            Err(_) => {}
        }
    }

    fn gone(&mut self, key: &Key) {
        if !key.is_v6() && !self.others.remove(key) {
            self.common = self.common.saturating_sub(1);
        }
    }

    /// One transaction: deletions, then additions.
    pub(super) fn commit(
        &mut self,
        ops: &[Op],
        done: &mut Vec<Option<Counters>>,
    ) -> Result<(), CommitError> {
        if ops.is_empty() {
            return Ok(());
        }
        let places = self.places(ops);
        let result = self.transact(ops, &places, done);
        let full = matches!(result, Err(CommitError { fault: Fault::Full, .. }));
        if full && self.common < self.common_max && places.contains(&Map::Common) {
            // There is less room than was known of.
            self.common = self.common_max;
            return self.commit(ops, done);
        }
        result
    }

    /// A transaction whose elements lie where `places` says.
    fn transact(
        &mut self,
        ops: &[Op],
        places: &[Map],
        done: &mut Vec<Option<Counters>>,
    ) -> Result<(), CommitError> {
        let (begin, sent) = self.write_transaction(ops, places);
        self.socket.send(&self.buf).map_err(fault)?;
        let at = done.len();
        done.resize(at + ops.len(), None);
        let result = self.read_replies(ops, begin, &sent, &mut done[at..]);
        if result.is_err() {
            done.truncate(at);
            self.socket.drain();
        }
        self.note(ops, places, result);
        result
    }

    /// Fills the buffer; gives the number of its begin and its messages.
    fn write_transaction(&mut self, ops: &[Op], places: &[Map]) -> (u32, Vec<Sent>) {
        self.buf.clear();
        let begin = self.socket.next_seq();
        self.buf.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, begin, &BATCH);
        self.buf.finish();
        let mut sent = Vec::new();
        let mut left = ops.len();
        let kinds = [false, true].into_iter().flat_map(|add| Map::ALL.map(|map| (add, map)));
        for (add, map) in kinds {
            let of_kind = |(i, op): &(usize, &Op)| {
                matches!(op, Op::Add(_)) == add && places.get(*i) == Some(&map)
            };
            let chosen: Vec<(usize, &Op)> = ops.iter().enumerate().filter(of_kind).collect();
            for chunk in chosen.chunks(PER_MESSAGE) {
                left -= chunk.len();
                // Errors always come; one acknowledgement tells that all was read.
                let ack = if left == 0 { NLM_F_ACK } else { 0 };
                sent.push(self.write_elements(add, map, ack, chunk));
            }
        }
        let end = self.socket.next_seq();
        self.buf.message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, end, &BATCH);
        self.buf.finish();
        (begin, sent)
    }

    fn write_elements(&mut self, add: bool, map: Map, ack: u16, chunk: &[(usize, &Op)]) -> Sent {
        let seq = self.socket.next_seq();
        let (msg, flags) = if add {
            (libc::NFT_MSG_NEWSETELEM, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL)
        } else {
            (libc::NFT_MSG_DELSETELEM, NLM_F_REQUEST | NLM_F_ECHO)
        };
        let starts_at = self.buf.bytes().len();
        let list = self.begin_list(msg, flags | ack, seq, map);
        let mut offsets = Vec::with_capacity(chunk.len());
        for (index, op) in chunk {
            offsets.push((self.buf.bytes().len() - starts_at, *index));
            match op {
                Op::Add(element) => write_element(&mut self.buf, element),
                Op::Delete(key) => write_key(&mut self.buf, key),
            }
        }
        self.buf.end(list);
        self.buf.finish();
        Sent { seq, offsets }
    }

    fn begin_list(&mut self, msg: i32, flags: u16, seq: u32, map: Map) -> Nest {
        self.buf.message(msg_type(msg), flags, seq, &NETDEV);
        self.buf.attr_str(LIST_TABLE, &self.table);
        self.buf.attr_str(LIST_SET, map.name());
        self.buf.nest(LIST_ELEMENTS)
    }

    fn read_replies(
        &mut self,
        ops: &[Op],
        begin: u32,
        sent: &[Sent],
        done: &mut [Option<Counters>],
    ) -> Result<(), CommitError> {
        let deleted: HashMap<Key, usize> = ops
            .iter()
            .enumerate()
            .filter_map(|(i, op)| match op {
                Op::Delete(key) => Some((*key, i)),
                Op::Add(_) => None,
            })
            .collect();
        let mut failed = None;
        loop {
            let messages = match self.socket.recv() {
                Ok(messages) => messages,
                Err(RecvError::Empty) => break,
                // Whether it was applied is unknown; the retry finds out (`Exists`, `Missing`).
                Err(RecvError::Overrun) => return Err(Fault::NoRoom.into()),
                Err(RecvError::Errno(errno)) => return Err(fault(errno).into()),
            };
            for message in messages {
                match message.errno() {
                    Some(0) => {}
                    Some(errno) => {
                        failed.get_or_insert_with(|| locate(&message, errno, begin, sent));
                    }
                    None => each_element(&message, |key, counters| {
                        if let Some(slot) = deleted.get(&key).and_then(|i| done.get_mut(*i)) {
                            *slot = Some(counters);
                        }
                    }),
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Counters by key; `None` for what is not there.
    pub(super) fn read(
        &mut self,
        keys: &[Key],
        out: &mut Vec<Option<Counters>>,
    ) -> Result<(), Fault> {
        let mut found: HashMap<Key, Counters> = HashMap::with_capacity(keys.len());
        for map in Map::ALL {
            let chosen: Vec<Key> = keys.iter().copied().filter(|k| self.map_of(k) == map).collect();
            let mut rest = &chosen[..];
            let mut room = PER_MESSAGE;
            while !rest.is_empty() {
                let chunk = &rest[..rest.len().min(room)];
                match self.read_chunk(map, chunk, &mut found) {
                    // The request ends at the first key that is missing.
                    Ok(answered) => rest = rest.get(answered..).unwrap_or(&[]),
                    Err(Fault::NoRoom) if room > 1 => room /= 2,
                    Err(fault) => return Err(fault),
                }
            }
        }
        out.extend(keys.iter().map(|key| found.get(key).copied()));
        Ok(())
    }

    /// How many keys of `chunk` were answered, a missing one at the end included.
    fn read_chunk(
        &mut self,
        map: Map,
        chunk: &[Key],
        found: &mut HashMap<Key, Counters>,
    ) -> Result<usize, Fault> {
        self.buf.clear();
        let seq = self.socket.next_seq();
        let list = self.begin_list(libc::NFT_MSG_GETSETELEM, NLM_F_REQUEST | NLM_F_ACK, seq, map);
        let mut offsets = Vec::with_capacity(chunk.len());
        for (index, key) in chunk.iter().enumerate() {
            offsets.push((self.buf.bytes().len(), index));
            write_key(&mut self.buf, key);
        }
        self.buf.end(list);
        self.buf.finish();
        self.socket.send(&self.buf).map_err(fault)?;
        let sent = [Sent { seq, offsets }];
        let mut answer = Ok(chunk.len());
        let mut got = 0;
        loop {
            let messages = match self.socket.recv() {
                Ok(messages) => messages,
                Err(RecvError::Empty) => break,
                Err(RecvError::Overrun) => {
                    self.socket.drain();
                    return Err(Fault::NoRoom);
                }
                Err(RecvError::Errno(errno)) => return Err(fault(errno)),
            };
            for message in messages {
                match message.errno() {
                    Some(0) => {}
                    Some(errno) => {
                        let error = locate(&message, errno, 0, &sent);
                        answer = match (error.fault, error.at) {
                            (Fault::Missing, Some(at)) => Ok(at + 1),
                            // A kernel that doesn't say where: it answers in order.
                            (Fault::Missing, None) => Ok(got + 1),
                            (fault, _) => Err(fault),
                        };
                    }
                    None => each_element(&message, |key, counters| {
                        got += 1;
                        found.insert(key, counters);
                    }),
                }
            }
        }
        answer
    }

    /// Asks for a listing of one map; the answer is read by [`Elements::next_listed`].
    pub(super) fn start_listing(&mut self, map: Map) -> Result<(), Fault> {
        self.socket.drain();
        self.buf.clear();
        let seq = self.socket.next_seq();
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        self.buf.message(msg_type(libc::NFT_MSG_GETSETELEM), flags, seq, &NETDEV);
        self.buf.attr_str(LIST_TABLE, &self.table);
        self.buf.attr_str(LIST_SET, map.name());
        self.buf.finish();
        self.socket.send(&self.buf).map_err(fault)
    }

    /// Appends the next piece of the listing; true at its end.
    pub(super) fn next_listed(&mut self, keys: &mut Vec<Key>) -> Result<bool, Fault> {
        match self.socket.recv() {
            Ok(messages) => {
                for message in messages {
                    match message.errno() {
                        Some(errno) if errno != 0 => return Err(fault(Errno::from_raw(errno))),
                        Some(_) => return Ok(true),
                        None if message.is_done() => return Ok(true),
                        None => each_element(&message, |key, _| keys.push(key)),
                    }
                }
                Ok(false)
            }
            Err(RecvError::Empty) => Ok(true),
            Err(RecvError::Overrun) => Err(Fault::NoRoom),
            Err(RecvError::Errno(errno)) => Err(fault(errno)),
        }
    }

    /// Whether the table is there.
    pub(super) fn table_stands(&mut self) -> Result<bool, Fault> {
        self.buf.clear();
        let seq = self.socket.next_seq();
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.buf.message(msg_type(libc::NFT_MSG_GETTABLE), flags, seq, &NETDEV);
        self.buf.attr_str(1, &self.table);
        self.buf.finish();
        self.socket.send(&self.buf).map_err(fault)?;
        let mut stands = Ok(true);
        while let Ok(messages) = self.socket.recv() {
            for message in messages {
                match message.errno() {
                    Some(0) | None => {}
                    Some(libc::ENOENT) => stands = Ok(false),
                    Some(errno) => stands = Err(fault(Errno::from_raw(errno))),
                }
            }
        }
        stands
    }
}

/// `NFTA_LIST_ELEM { key }`.
fn write_key(buf: &mut MsgBuf, key: &Key) {
    let elem = buf.nest(LIST_ELEM);
    let nest = buf.nest(ELEM_KEY);
    buf.attr(DATA_VALUE, key.bytes());
    buf.end(nest);
    buf.end(elem);
}

/// `NFTA_LIST_ELEM { key, data }`; the set's counter is cloned into it by the kernel.
fn write_element(buf: &mut MsgBuf, element: &Element) {
    let elem = buf.nest(LIST_ELEM);
    let nest = buf.nest(ELEM_KEY);
    buf.attr(DATA_VALUE, element.key.bytes());
    buf.end(nest);
    let nest = buf.nest(ELEM_DATA);
    write_data(buf, &element.action);
    buf.end(nest);
    buf.end(elem);
}

/// Map data as `ruleset.rs` reads it from registers: of IPv6 the quadruple, the device in host order,
/// the next hop, the first bytes of the IP header.
fn write_data(buf: &mut MsgBuf, action: &Action) {
    match action.via {
        IpAddr::V4(via) => {
            let data = data4(action.leaves.bytes(), action.oif, via, action.dscp);
            buf.attr(DATA_VALUE, &data);
        }
        IpAddr::V6(via) => {
            let (oif, tos) = (action.oif.to_ne_bytes(), action.dscp << 2);
            let first = [0x60 | tos >> 4, tos << 4, 0, 0];
            buf.attr_parts(DATA_VALUE, &[action.leaves.bytes(), &oif, &via.octets(), &first]);
        }
    }
}

/// The elements of a NEWSETELEM or DELSETELEM message with their counters.
fn each_element(message: &NlMsgView<'_>, mut each: impl FnMut(Key, Counters)) {
    let Some(list) = Attrs::new(message.after(NETDEV.len())).nested(LIST_ELEMENTS) else { return };
    for (_, elem) in list {
        let elem = Attrs::new(elem);
        let key = elem.nested(ELEM_KEY).and_then(|k| k.find(DATA_VALUE)).and_then(Key::from_bytes);
        let Some(key) = key else { continue };
        let expr = elem
            .nested(ELEM_EXPR)
            .or_else(|| elem.nested(ELEM_EXPRESSIONS).and_then(|list| list.nested(LIST_ELEM)));
        let counter = expr.and_then(|e| e.nested(EXPR_DATA));
        let number = |kind| counter.and_then(|c| c.find(kind)).and_then(be64).unwrap_or(0);
        let (packets, bytes) = (number(COUNTER_PACKETS), number(COUNTER_BYTES));
        each(key, Counters { packets, bytes });
    }
}

/// Reads an error message: which operation was refused and why.
fn locate(message: &NlMsgView<'_>, errno: i32, begin: u32, sent: &[Sent]) -> CommitError {
    let fault = fault(Errno::from_raw(errno));
    let Some(of) = sent.iter().find(|s| s.seq == message.seq && s.seq != begin) else {
        return CommitError { at: None, fault };
    };
    let tlvs = if message.flags & NLM_F_CAPPED == 0 { &[][..] } else { message.after(ERR_FIXED) };
    let Some(offset) = Attrs::new(tlvs).find(ERR_OFFSET).and_then(ne32) else {
        return CommitError { at: None, fault };
    };
    let at = of.offsets.iter().find(|(o, _)| u32::try_from(*o) == Ok(offset)).map(|(_, i)| *i);
    match (at, fault) {
        // It names the table or the set, not an element.
        (None, Fault::Missing) => CommitError { at: None, fault: Fault::TableGone },
        _ => CommitError { at, fault },
    }
}

/// The errno in our words.
pub(super) fn fault(errno: Errno) -> Fault {
    match errno {
        Errno::EPERM | Errno::EACCES => Fault::Permission,
        Errno::ENOBUFS | Errno::ENOMEM | Errno::EMSGSIZE | Errno::EAGAIN => Fault::NoRoom,
        Errno::ENFILE | Errno::ENOSPC => Fault::Full,
        Errno::EEXIST | Errno::EBUSY => Fault::Exists,
        Errno::ENOENT => Fault::Missing,
        Errno::ENODEV | Errno::ENXIO => Fault::NoDevice,
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
            Fault::Unsupported(errno)
        }
        other => Fault::Other(other),
    }
}
