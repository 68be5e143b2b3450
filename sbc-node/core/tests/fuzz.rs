//! The fuzz targets on stable: the torture messages and seeds as they are, then seeded mutations.
//!
//! Bounded and repeatable; `sbc-node/fuzz` runs the same targets under libFuzzer.

use std::path::PathBuf;

use sbc_core::fuzz::{fuzz_datagram, fuzz_sdp, fuzz_stream, fuzz_stun, fuzz_uri};

const SDP: &[u8] = b"v=0\r\no=a 1 2 IN IP4 10.0.0.1\r\ns=x\r\nc=IN IP4 10.0.0.1\r\nb=AS:64\r\nt=0 0\r\na=ice-lite\r\n\
    m=audio 4000/2 RTP/AVP 0 8 96 101\r\na=rtpmap:96 opus/48000/2\r\na=fmtp:96 apt=8\r\na=rtcp:9 IN IP6 ::1\r\n\
    a=candidate:1 1 UDP 1 10.0.0.1 4 typ host\r\na=rtcp-mux\r\na=sendonly\r\nm=image 0 udptl t38\r\nc=IN IP6 ::\r\n";

const URIS: &[&str] = &[
    "sip:alice:pw@[2001:db8::1]:5060;transport=tcp;lr;maddr=192.0.2.1?Subject=a%20b&x=y",
    "sips:%61;phone-context=+1@example.com",
    "tel:+1-201-555-0123;ext=1;isub=2",
    "urn:service:sos",
    "sip:192.0.2.1",
];

const DIGEST: &[u8] = b"REGISTER sip:a SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx;rport, SIP/2.0/TCP [::1]:9\r\n\
    f: \"a\\\"b\" <sip:x@y;z>;tag=1\r\nt: sip:x\r\ni: c@d\r\nCSeq: 1 REGISTER\r\nm: <sip:a@b>;expires=3, *\r\n\
    Authorization: Digest username=\"u\", realm=\"r\", nonce=\"n\", uri=\"sip:a\", response=\"00\", qop=auth, nc=00000001, cnonce=\"c\"\r\n\
    Reason: Q.850;cause=16;text=\"x\"\r\nSession-Expires: 90;refresher=uas\r\nReplaces: a;to-tag=b;from-tag=c\r\n\
    Subscription-State: active;expires=3\r\nDate: Sat, 13 Nov 2010 23:29:00 GMT\r\nWarning: 399 h \"t\"\r\n\
    Content-Type: multipart/mixed;boundary=b\r\nl: 22\r\n\r\n--b\r\nA: b\r\n\r\nx\r\n--b--\r\n";

/// What libFuzzer found, kept as seeds.
fn found() -> Vec<Vec<u8>> {
    // Latin-1 that grows when transcoded, then an error near the end.
    let via = b"REGISTER sip:a SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nX: ";
    vec![[&via[..], &[0xff; 200], b"\0\r\n\r\n"].concat()]
}

fn torture() -> Vec<Vec<u8>> {
    let mut all = vec![DIGEST.to_vec()];
    all.extend(found());
    for rfc in ["rfc4475", "rfc5118"] {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", rfc].iter().collect();
        let mut files: Vec<_> =
            std::fs::read_dir(path).expect("data").map(|f| f.expect("file").path()).collect();
        files.sort();
        all.extend(files.iter().map(|f| std::fs::read(f).expect("message")));
    }
    assert!(all.len() > 60);
    all
}

/// A small generator: the point is that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (n.max(1) as u64)).expect("small")
    }

    /// Changes `seed` in a few places: bytes, cuts, repeats, pieces of another input.
    fn mutate(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        const SPICE: &[&[u8]] = &[
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b"\\\0",
            b" ",
            b"\t",
            b":",
            b";",
            b",",
            b"\"",
            b"\\",
            b"<",
            b">",
            b"@",
            b"%",
            b"%00",
            b"[",
            b"]",
            b"=",
            b"?",
            b"\r\n ",
            b"\xff",
            b"\xc3\xa9",
            b"4294967296",
            b"-1",
            b"a=",
            b"m=",
            b"c=IN IP4 0.0.0.0\r\n",
        ];
        let mut data = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(data.len() + 1);
            match self.below(6) {
                0 => data.truncate(at),
                1 => {
                    let byte = u8::try_from(self.below(256)).expect("byte");
                    if let Some(b) = data.get_mut(at) {
                        *b = byte;
                    }
                }
                2 => drop(data.splice(at..at, SPICE[self.below(SPICE.len())].iter().copied())),
                3 => {
                    let end = (at + self.below(40)).min(data.len());
                    data.drain(at..end);
                }
                4 => {
                    let end = (at + self.below(60)).min(data.len());
                    let piece = data[at..end].to_vec();
                    data.splice(at..at, piece);
                }
                _ => {
                    let from = self.below(other.len());
                    let to = (from + self.below(80)).min(other.len());
                    data.splice(at..at, other[from..to].iter().copied());
                }
            }
        }
        data
    }
}

fn run(target: fn(&[u8]), seeds: &[Vec<u8>], rounds: usize) {
    for seed in seeds {
        target(seed);
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        let (seed, other) = (&seeds[random.below(seeds.len())], &seeds[random.below(seeds.len())]);
        let input = random.mutate(seed, other);
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            panic!("input: {:?}", String::from_utf8_lossy(&input).escape_debug().to_string());
        }
    }
}

#[test]
fn datagrams() {
    run(fuzz_datagram, &torture(), 20_000);
}

#[test]
fn streams() {
    let seeds: Vec<Vec<u8>> = torture()
        .windows(2)
        .filter_map(|pair| pair.split_first())
        .map(|(a, b)| [&[17][..], a, b"\r\n\r\n", &b[0]].concat())
        .collect();
    run(fuzz_stream, &seeds, 20_000);
}

#[test]
fn descriptions() {
    run(fuzz_sdp, &[SDP.to_vec(), SDP[..200].to_vec()], 20_000);
}

#[test]
fn binding_requests_and_responses() {
    let request = sbc_core::stun::request([7; 12]);
    let source = "192.0.2.1:5060".parse().expect("address");
    let answer = sbc_core::stun::answer(&request, source).expect("an answer").into_bytes();
    // With what must be understood and is not, and without FINGERPRINT.
    let odd = [&[0, 1, 0, 8][..], &request[4..20], &[0, 0x24, 0, 4, 1, 2, 3, 4]].concat();
    let bare = [&[0, 1, 0, 0][..], &request[4..20]].concat();
    run(fuzz_stun, &[request, answer, odd, bare], 50_000);
}

#[test]
fn uris() {
    let seeds: Vec<Vec<u8>> = URIS.iter().map(|u| u.as_bytes().to_vec()).collect();
    run(fuzz_uri, &seeds, 50_000);
}
