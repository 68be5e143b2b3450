//! A writer of MaxMind's file format, as small as tests of country lists need it. Std only: the unit
//! tests of the core include this file too.

use std::net::{IpAddr, Ipv6Addr};

/// A file of format version 2.0: an IPv6 tree of 24-bit records, IPv4 networks below `::/96`, one map
/// `{country: {iso_code}}` per network. `kind` is its type, `GeoLite2-Country`. Networks are
/// `ADDR/LEN` and may not overlap.
pub fn mmdb(kind: &str, nets: &[(&str, &str)]) -> Vec<u8> {
    let mut nodes: Vec<[Option<usize>; 2]> = vec![[None; 2]];
    let mut leaves: Vec<(usize, usize, usize)> = Vec::new();
    let mut data = Vec::new();
    for (net, country) in nets {
        let (address, len) = net.split_once('/').expect("ADDR/LEN");
        let len: u8 = len.parse().expect("a length");
        let (bits, len) = match address.parse().expect("an address") {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), len + 96),
            IpAddr::V6(v6) => (Ipv6Addr::to_bits(v6), len),
        };
        let mut at = 0;
        for depth in 0..len {
            let bit = usize::from((bits >> (127 - depth)) & 1 == 1);
            if depth + 1 == len {
                leaves.push((at, bit, data.len()));
            } else {
                let next = nodes[at][bit].unwrap_or_else(|| {
                    nodes.push([None; 2]);
                    nodes.len() - 1
                });
                nodes[at][bit] = Some(next);
                at = next;
            }
        }
        map(&mut data, 1);
        text(&mut data, "country");
        map(&mut data, 1);
        text(&mut data, "iso_code");
        text(&mut data, country);
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        for (bit, next) in node.iter().enumerate() {
            let leaf = leaves.iter().find(|l| (l.0, l.1) == (at, bit));
            let value = leaf.map_or(next.unwrap_or(count), |leaf| count + 16 + leaf.2);
            file.extend(&u32::try_from(value).expect("small").to_be_bytes()[1..]);
        }
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    map(&mut file, 9);
    for (name, form, value) in [
        ("binary_format_major_version", 5, 2),
        ("binary_format_minor_version", 5, 0),
        ("build_epoch", 9, 1_700_000_000),
        ("ip_version", 5, 6),
        ("node_count", 6, u64::try_from(count).expect("small")),
        ("record_size", 5, 24),
    ] {
        text(&mut file, name);
        number(&mut file, form, value);
    }
    text(&mut file, "database_type");
    text(&mut file, kind);
    text(&mut file, "languages");
    file.extend([1, 11 - 7]);
    text(&mut file, "en");
    text(&mut file, "description");
    map(&mut file, 1);
    text(&mut file, "en");
    text(&mut file, "for tests");
    file
}

fn map(out: &mut Vec<u8>, entries: u8) {
    out.push(0xe0 + entries);
}

fn text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 29, "longer texts have another form");
    out.push(0x40 + u8::try_from(text.len()).expect("short"));
    out.extend(text.as_bytes());
}

/// An unsigned number: 5 of 16 bits, 6 of 32, 9 of 64.
fn number(out: &mut Vec<u8>, form: u8, value: u64) {
    let bytes = value.to_be_bytes();
    let bytes: Vec<u8> = bytes.into_iter().skip_while(|b| *b == 0).collect();
    let size = u8::try_from(bytes.len()).expect("eight at most");
    if form < 8 {
        out.push((form << 5) + size);
    } else {
        out.extend([size, form - 7]);
    }
    out.extend(bytes);
}
