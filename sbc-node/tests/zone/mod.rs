//! A name server on loopback with a few names, for the tests of resolution.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) const A: u16 = 1;
pub(crate) const SRV: u16 = 33;
pub(crate) const NAPTR: u16 = 35;

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|l| !l.is_empty());
    let mut out = Vec::new();
    for label in labels {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

pub(crate) fn srv(priority: u16, weight: u16, port: u16, target: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [priority, weight, port] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend(name(target));
    out
}

pub(crate) fn naptr(order: u16, preference: u16, service: &str, replacement: &str) -> Vec<u8> {
    let mut out = [order.to_be_bytes(), preference.to_be_bytes()].concat();
    for text in ["s", service, ""] {
        out.push(u8::try_from(text.len()).unwrap());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend(name(replacement));
    out
}

/// TTL and data of the records of one name and type.
type Records = HashMap<(String, u16), Vec<(u32, Vec<u8>)>>;

/// A name server with a few names; everything else does not exist.
#[derive(Clone)]
pub(crate) struct Zone {
    records: Arc<Mutex<Records>>,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Zone {
    pub(crate) fn new(records: &[(&str, u16, u32, Vec<u8>)]) -> Zone {
        let zone = Zone { records: Arc::default(), asked: Arc::default() };
        zone.set(records);
        zone
    }

    /// Other records from now on.
    pub(crate) fn set(&self, records: &[(&str, u16, u32, Vec<u8>)]) {
        let mut all = Records::new();
        for (name, kind, ttl, data) in records {
            let entry = all.entry(((*name).to_owned(), *kind)).or_default();
            entry.push((*ttl, data.clone()));
        }
        *self.records.lock().unwrap() = all;
    }

    /// Serves on a thread for the life of the test process.
    pub(crate) fn serve(&self) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let zone = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 1_500];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                zone.asked.fetch_add(1, Ordering::Relaxed);
                socket.send_to(&zone.answer(&buffer[..count]), from).unwrap();
            }
        });
        address
    }

    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let mut at = 12;
        let mut labels = Vec::new();
        while query[at] != 0 {
            let length = usize::from(query[at]);
            labels.push(String::from_utf8(query[at + 1..at + 1 + length].to_vec()).unwrap());
            at += 1 + length;
        }
        let question = &query[12..at + 5];
        let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        let host = labels.join(".").to_ascii_lowercase();
        let records = self.records.lock().unwrap();
        let found = records.get(&(host.clone(), kind)).cloned().unwrap_or_default();
        let exists = records.keys().any(|(n, _)| *n == host);
        let rcode = if exists { 0 } else { 3 };
        let mut out = query[..2].to_vec();
        let count = u8::try_from(found.len()).unwrap();
        out.extend_from_slice(&[0x84, rcode, 0, 1, 0, count, 0, 0, 0, 0]);
        out.extend_from_slice(question);
        for (ttl, data) in found {
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&[0, 1]);
            out.extend_from_slice(&ttl.to_be_bytes());
            out.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            out.extend_from_slice(&data);
        }
        out
    }
}
