//! `sbcctl call`: places one call through an SBC over UDP and says what became of it. For the test
//! of an installation, not for measuring: one call, a tone of silence, a BYE.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use sbc_core::sip::{Builder, HeaderName, Limits, Message, Method, parse};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::Failure;
use super::run::Done;

/// RFC 3261 T1 and T2.
const T1: Duration = Duration::from_millis(500);
const T2: Duration = Duration::from_secs(4);
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// 20 ms of G.711.
const FRAME: Duration = Duration::from_millis(20);
const FRAME_SAMPLES: u32 = 160;
const SILENCE_PCMU: u8 = 0xff;

#[derive(clap::Args)]
pub(super) struct Call {
    /// Whom to call.
    uri: String,
    /// HOST:PORT of the SBC that the INVITE goes to.
    #[arg(long)]
    via: String,
    /// The caller's URI.
    #[arg(long, default_value = "sip:test@test.invalid")]
    from: String,
    /// Seconds to talk.
    #[arg(long, default_value_t = 2)]
    talk: u64,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 20)]
    timeout: u64,
    /// Any final answer will do: the SBC is there and reads SIP.
    #[arg(long)]
    any_answer: bool,
}

pub(super) async fn run(call: Call) -> Done {
    let failed = |e: std::io::Error| Failure::Unreachable(format!("{}: {e}", call.via));
    let via = tokio::net::lookup_host(&call.via).await.map_err(failed)?.next();
    let via = via.ok_or_else(|| Failure::Unreachable(format!("{}: no address", call.via)))?;
    let socket = bind_towards(via).await.map_err(failed)?;
    let media = UdpSocket::bind((socket.local_addr().map_err(failed)?.ip(), 0)).await;
    let media = media.map_err(failed)?;
    let mut leg = Leg::new(&call, socket, media).map_err(failed)?;
    let answer = leg.invite(Duration::from_secs(call.timeout)).await?;
    let status = answer.status().unwrap_or(0);
    println!("INVITE {}: {status}", call.uri);
    if !(200..300).contains(&status) {
        leg.ack_refusal(&answer).await?;
        return match call.any_answer {
            true => Ok(()),
            false => Err(Failure::Refused(format!("the call was answered {status}"))),
        };
    }
    leg.confirm(&answer).await?;
    let heard = leg.talk(&answer, Duration::from_secs(call.talk)).await;
    let bye = leg.bye().await?;
    println!("talked {} s, {heard} RTP packets heard, BYE: {bye}", call.talk);
    match bye {
        200..300 => Ok(()),
        _ => Err(Failure::Refused(format!("BYE was answered {bye}"))),
    }
}

/// A socket whose address is the one that `peer` will see, NAT aside.
async fn bind_towards(peer: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(peer).await?;
    Ok(socket)
}

/// Our side of the call.
struct Leg {
    socket: UdpSocket,
    media: UdpSocket,
    local: SocketAddr,
    uri: String,
    from: String,
    to: String,
    call_id: String,
    cseq: u32,
    /// Where requests inside of the dialog go: the remote target and the route set.
    target: String,
    route: Vec<String>,
}

impl Leg {
    fn new(call: &Call, socket: UdpSocket, media: UdpSocket) -> std::io::Result<Leg> {
        let local = socket.local_addr()?;
        Ok(Leg {
            socket,
            media,
            local,
            uri: call.uri.clone(),
            from: format!("<{}>;tag={:08x}", call.from, rand::random::<u32>()),
            to: format!("<{}>", call.uri),
            call_id: format!("{:016x}@{}", rand::random::<u64>(), local.ip()),
            cseq: 1,
            target: call.uri.clone(),
            route: Vec::new(),
        })
    }

    fn branch() -> String {
        format!("z9hG4bK{:016x}", rand::random::<u64>())
    }

    fn request(&self, method: &Method, uri: &str, branch: &str, to: &str) -> Builder {
        let mut out = Builder::request(method, uri);
        out.header(
            HeaderName::Via,
            format!("SIP/2.0/UDP {};branch={branch};rport", self.local).as_str(),
        );
        out.header(HeaderName::MaxForwards, "70");
        for route in &self.route {
            out.header(HeaderName::Route, route.as_str());
        }
        out.header(HeaderName::From, self.from.as_str());
        out.header(HeaderName::To, to);
        out.header(HeaderName::CallId, self.call_id.as_str());
        out.header(HeaderName::CSeq, format!("{} {method}", self.cseq).as_str());
        out.header(HeaderName::Contact, format!("<sip:test@{}>", self.local).as_str());
        out
    }

    /// Sends until there is a final answer.
    async fn exchange(
        &self,
        request: &Bytes,
        invite: bool,
        within: Duration,
    ) -> Result<Message, Failure> {
        let failed = |e: std::io::Error| Failure::Unreachable(e.to_string());
        let end = Instant::now() + within;
        let (mut pause, mut heard) = (T1, false);
        let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            if !(invite && heard) {
                self.socket.send(request).await.map_err(failed)?;
            }
            let again = (Instant::now() + pause).min(end);
            pause = if invite { pause * 2 } else { (pause * 2).min(T2) };
            while let Ok(received) = timeout_at(again, self.socket.recv(&mut bytes)).await {
                let length = received.map_err(failed)?;
                let data = Bytes::copy_from_slice(bytes.get(..length).unwrap_or_default());
                let Ok(message) = parse(data, &Limits::default()) else { continue };
                let Some(status) = message.status() else { continue };
                if !message.cseq().is_ok_and(|cseq| cseq.number == self.cseq) {
                    continue;
                }
                heard = true;
                if status >= 200 {
                    return Ok(message);
                }
            }
            if Instant::now() >= end {
                let what = if heard { "no final answer" } else { "no answer" };
                return Err(Failure::Unreachable(what.to_owned()));
            }
        }
    }

    async fn invite(&mut self, within: Duration) -> Result<Message, Failure> {
        let port = self.media.local_addr().map_or(0, |a| a.port());
        let family = if self.local.is_ipv4() { "IP4" } else { "IP6" };
        let ip = self.local.ip();
        let sdp = format!(
            "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n\
             m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=sendrecv\r\n"
        );
        let request = self.request(&Method::Invite, &self.uri, &Leg::branch(), &self.to);
        let request = request.finish_with("application/sdp", sdp.as_bytes());
        self.exchange(&request, true, within).await
    }

    /// RFC 3261 §17.1.1.3: within the transaction, that is with its branch.
    async fn ack_refusal(&self, answer: &Message) -> Done {
        let branch = answer.via().map(|via| via.branch().to_owned());
        let to = answer.header(HeaderName::To).unwrap_or(&self.to).to_owned();
        let ack = self.request(&Method::Ack, &self.uri, &branch.unwrap_or_default(), &to).finish();
        self.send(&ack).await
    }

    /// The dialog stands: RFC 3261 §12.1.2, and its ACK of §13.2.2.4.
    async fn confirm(&mut self, answer: &Message) -> Done {
        answer.header(HeaderName::To).unwrap_or_default().clone_into(&mut self.to);
        if let Ok(Some(contact)) = answer.contact()
            && let Ok(uri) = contact.uri()
        {
            uri.as_str().clone_into(&mut self.target);
        }
        self.route = answer.values(HeaderName::RecordRoute).map(str::to_owned).collect();
        self.route.reverse();
        let ack = self.request(&Method::Ack, &self.target, &Leg::branch(), &self.to).finish();
        self.send(&ack).await
    }

    async fn send(&self, message: &Bytes) -> Done {
        let sent = self.socket.send(message).await;
        sent.map(|_| ()).map_err(|e| Failure::Unreachable(e.to_string()))
    }

    /// Sends silence and counts what comes back.
    async fn talk(&self, answer: &Message, time: Duration) -> u64 {
        let Some(remote) = media_address(answer.body()) else { return 0 };
        let end = Instant::now() + time;
        let (mut sequence, mut stamp, mut heard) = (0_u16, 0_u32, 0);
        let ssrc: u32 = rand::random();
        let mut frames = tokio::time::interval(FRAME);
        let mut bytes = [0; 2_048];
        loop {
            tokio::select! {
                _ = frames.tick() => {
                    if Instant::now() >= end {
                        return heard;
                    }
                    let mut packet = vec![0x80, 0];
                    packet.extend(sequence.to_be_bytes());
                    packet.extend(stamp.to_be_bytes());
                    packet.extend(ssrc.to_be_bytes());
                    packet.resize(packet.len() + 160, SILENCE_PCMU);
                    sequence = sequence.wrapping_add(1);
                    stamp = stamp.wrapping_add(FRAME_SAMPLES);
                    // A refusal of the network is heard as silence.
                    let _ = self.media.send_to(&packet, remote).await;
                }
                received = self.media.recv_from(&mut bytes) => heard += u64::from(received.is_ok()),
            }
        }
    }

    async fn bye(&mut self) -> Result<u16, Failure> {
        self.cseq += 1;
        let bye = self.request(&Method::Bye, &self.target, &Leg::branch(), &self.to).finish();
        let answer = self.exchange(&bye, false, Duration::from_secs(10)).await?;
        Ok(answer.status().unwrap_or(0))
    }
}

/// Where the other side wants its audio.
fn media_address(sdp: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(sdp).ok()?;
    let line = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix));
    let ip = line("c=IN IP4 ").or_else(|| line("c=IN IP6 "))?.trim().parse().ok()?;
    let port = line("m=audio ")?.split(' ').next()?.parse().ok()?;
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_goes_where_the_answer_says() {
        let sdp = b"v=0\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 20000 RTP/AVP 0\r\n";
        assert_eq!(media_address(sdp), "192.0.2.1:20000".parse().ok());
        assert_eq!(media_address(b"v=0\r\n"), None);
    }
}
