//! SIP over WebSocket (RFC 7118), the server's side: handshake, frames, pings, over bytes that come
//! and go elsewhere. The protocol itself is tungstenite's; it works on a stream in memory here.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use sbc_core::sip::Limits;
use tungstenite::handshake::MidHandshake;
use tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response, ServerHandshake};
use tungstenite::http::{HeaderValue, StatusCode};
use tungstenite::protocol::{Message, WebSocket, WebSocketConfig};
use tungstenite::{Error, HandshakeError};

/// The subprotocol of SIP (RFC 7118 §4).
const SUBPROTOCOL: &str = "sip";
const PROTOCOL_HEADER: &str = "Sec-WebSocket-Protocol";
/// A frame carries a small control payload besides its own length.
const SLACK_BYTES: usize = 64 * 1024;

/// What one WebSocket brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WsFrame {
    /// One whole SIP message (RFC 7118 §5).
    Message(Bytes),
    /// CRLF CRLF in a frame of its own (RFC 5626 §3.5.1); an answer is due.
    Ping,
    /// Any sign of life that needs nothing.
    Alive,
}

/// Why a WebSocket ends.
#[derive(Debug, thiserror::Error)]
pub enum WsError {
    #[error("the handshake was refused: {0}")]
    Refused(&'static str),
    #[error("bad handshake: {0}")]
    Handshake(Error),
    #[error("closed by the peer")]
    Closed,
    #[error(transparent)]
    Protocol(Error),
}

/// Who may open a WebSocket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Origins of web pages; empty for any. A client that sends none is no browser and passes.
    pub origins: Vec<Box<str>>,
}

/// Bytes on their way in and out.
#[derive(Debug, Default)]
struct Memory {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Memory {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Judges a handshake.
struct Check(Arc<Rules>);

impl Callback for Check {
    fn on_request(
        self,
        request: &Request,
        mut answer: Response,
    ) -> Result<Response, ErrorResponse> {
        let refuse = |status, text: &str| {
            let mut refusal = ErrorResponse::new(Some(text.to_owned()));
            *refusal.status_mut() = status;
            refusal
        };
        let offered = request.headers().get_all(PROTOCOL_HEADER);
        let sip = offered
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case(SUBPROTOCOL)));
        if !sip {
            return Err(refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Protocol: sip is wanted\n"));
        }
        let origin = request.headers().get("Origin").map(|o| o.to_str().unwrap_or(""));
        let welcome = |origin: &str| {
            let all = &self.0.origins;
            all.is_empty() || all.iter().any(|o| o.eq_ignore_ascii_case(origin))
        };
        if origin.is_some_and(|o| !welcome(o)) {
            return Err(refuse(StatusCode::FORBIDDEN, "this origin is not allowed\n"));
        }
        answer.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static(SUBPROTOCOL));
        Ok(answer)
    }
}

enum State {
    Shaking(Box<MidHandshake<ServerHandshake<Memory, Check>>>),
    Open(Box<WebSocket<Memory>>),
    /// Over; what is left to send.
    Over(Vec<u8>),
}

/// One WebSocket.
pub struct Ws {
    state: State,
    /// Something came since the last whole message.
    partial: bool,
    /// Bytes that came since.
    unfinished: usize,
}

impl Ws {
    pub fn new(rules: Arc<Rules>, limits: &Limits) -> Ws {
        let message = limits.head_bytes_max + limits.body_bytes_max;
        let config = WebSocketConfig::default()
            .read_buffer_size(4 * 1024)
            .write_buffer_size(0)
            .max_write_buffer_size(message + SLACK_BYTES)
            .max_message_size(Some(message))
            .max_frame_size(Some(message));
        let shaking = ServerHandshake::start(Memory::default(), Check(rules), Some(config));
        Ws { state: State::Shaking(Box::new(shaking)), partial: false, unfinished: 0 }
    }

    /// Whether the handshake is done.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Whether a message is on its way but not whole.
    pub fn partial(&self) -> bool {
        self.partial || matches!(self.state, State::Shaking(_))
    }

    /// Bytes of the handshake or message that is on its way.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Takes what was read; what it made goes to `each`.
    ///
    /// # Errors
    /// The connection ends; [`take_output`](Self::take_output) has the last word to the peer.
    pub fn receive(&mut self, data: &[u8], each: &mut dyn FnMut(WsFrame)) -> Result<(), WsError> {
        match &mut self.state {
            State::Shaking(shaking) => shaking.get_mut().get_mut().input.extend(data),
            State::Open(open) => open.get_mut().input.extend(data),
            State::Over(_) => return Err(WsError::Closed),
        }
        self.partial = true;
        self.unfinished += data.len();
        self.shake()?;
        let State::Open(open) = &mut self.state else { return Ok(()) };
        loop {
            let message = match open.read() {
                Ok(message) => message,
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(self.over(error)),
            };
            self.partial = false;
            self.unfinished = 0;
            let data = match message {
                Message::Text(text) => Bytes::from(text),
                Message::Binary(data) => data,
                // The answer to a ping is queued by the library and leaves with the next read.
                Message::Ping(_) | Message::Pong(_) => {
                    each(WsFrame::Alive);
                    continue;
                }
                Message::Close(_) | Message::Frame(_) => continue,
            };
            let blank = data.iter().all(|b| matches!(b, b'\r' | b'\n'));
            each(match blank {
                true if data.len() >= 4 => WsFrame::Ping,
                true => WsFrame::Alive,
                false => WsFrame::Message(data),
            });
        }
    }

    fn shake(&mut self) -> Result<(), WsError> {
        let State::Shaking(_) = &self.state else { return Ok(()) };
        let State::Shaking(shaking) = std::mem::replace(&mut self.state, State::Over(Vec::new()))
        else {
            return Ok(());
        };
        match shaking.handshake() {
            Ok(open) => {
                self.state = State::Open(Box::new(open));
                self.partial = false;
                self.unfinished = 0;
                Ok(())
            }
            Err(HandshakeError::Interrupted(shaking)) => {
                self.state = State::Shaking(Box::new(shaking));
                Ok(())
            }
            Err(HandshakeError::Failure(Error::Http(answer))) => {
                self.state = State::Over(refusal(answer.status(), answer.body().as_deref()));
                Err(WsError::Refused("origin or subprotocol"))
            }
            Err(HandshakeError::Failure(error)) => {
                self.state = State::Over(refusal(StatusCode::BAD_REQUEST, None));
                Err(WsError::Handshake(error))
            }
        }
    }

    fn over(&mut self, error: Error) -> WsError {
        match error {
            Error::ConnectionClosed | Error::AlreadyClosed => WsError::Closed,
            error => {
                if let State::Open(open) = &mut self.state {
                    // A peer that breaks the rules hears so, if it still listens (RFC 6455 §7.1.7).
                    let _ = open.close(None);
                    let _ = open.flush();
                }
                WsError::Protocol(error)
            }
        }
    }

    /// One SIP message as a frame: text where it is, binary where not.
    pub fn send(&mut self, data: &Bytes) -> Result<(), WsError> {
        let State::Open(open) = &mut self.state else { return Err(WsError::Closed) };
        let message = match std::str::from_utf8(data) {
            Ok(text) => Message::text(text),
            Err(_) => Message::binary(data.clone()),
        };
        open.send(message).map_err(WsError::Protocol)
    }

    /// Asks whether the peer is there (RFC 6455 §5.5.2).
    pub fn ping(&mut self) {
        if let State::Open(open) = &mut self.state {
            // A socket that takes nothing more will be found dead by the same clock.
            let _ = open.send(Message::Ping(Bytes::new()));
        }
    }

    /// What the peer is to be sent.
    pub fn take_output(&mut self) -> Bytes {
        Bytes::from(match &mut self.state {
            State::Shaking(shaking) => std::mem::take(&mut shaking.get_mut().get_mut().output),
            State::Open(open) => std::mem::take(&mut open.get_mut().output),
            State::Over(rest) => std::mem::take(rest),
        })
    }
}

/// A refused handshake in HTTP.
fn refusal(status: StatusCode, body: Option<&[u8]>) -> Vec<u8> {
    let body = body.unwrap_or_default();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(protocol: &str, extra: &str) -> String {
        format!(
            "GET / HTTP/1.1\r\nHost: sbc\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n{extra}\r\n"
        )
    }

    fn ws(origins: &[&str]) -> Ws {
        let origins = origins.iter().map(|o| (*o).into()).collect();
        Ws::new(Arc::new(Rules { origins }), &Limits::default())
    }

    fn take(ws: &mut Ws, data: &[u8]) -> (Vec<WsFrame>, Result<(), String>) {
        let mut frames = Vec::new();
        let result = ws.receive(data, &mut |f| frames.push(f));
        (frames, result.map_err(|e| e.to_string()))
    }

    /// A client's frame: masked with zeros.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        assert!(length < 126);
        [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
    }

    fn open() -> Ws {
        let mut ws = ws(&[]);
        assert_eq!(take(&mut ws, hello("sip", "").as_bytes()), (Vec::new(), Ok(())));
        let answer = String::from_utf8(ws.take_output().to_vec()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        // RFC 6455 §1.3: the answer to the sample nonce.
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("sec-websocket-protocol: sip\r\n"));
        ws
    }

    #[test]
    fn rfc7118_a_handshake_in_pieces_opens() {
        let mut ws = ws(&[]);
        for byte in hello("xmpp, SIP", "Origin: https://any.example\r\n").as_bytes().chunks(40) {
            assert_eq!(take(&mut ws, byte), (Vec::new(), Ok(())));
        }
        assert!(ws.is_open() && !ws.partial());
    }

    #[test]
    fn rfc7118_without_the_subprotocol_and_from_strange_pages_it_is_refused() {
        for (ws, hello, status) in [
            (ws(&[]), hello("xmpp", ""), "400"),
            (
                ws(&["https://phone.example"]),
                hello("sip", "Origin: https://evil.example\r\n"),
                "403",
            ),
            (ws(&[]), "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "400"),
            (ws(&[]), "GET nonsense\r\n\r\n".to_owned(), "400"),
        ] {
            let mut ws = ws;
            assert!(take(&mut ws, hello.as_bytes()).1.is_err());
            let answer = String::from_utf8(ws.take_output().to_vec()).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        let mut listed = ws(&["https://phone.example"]);
        let hello = hello("sip", "Origin: https://phone.example\r\n");
        assert_eq!(take(&mut listed, hello.as_bytes()).1, Ok(()));
        assert!(listed.is_open());
    }

    #[test]
    fn frames_become_messages_and_pings_are_answered() {
        let mut ws = open();
        let two = [frame(0x81, b"OPTIONS one"), frame(0x82, &[0xff, 1])].concat();
        let (frames, result) = take(&mut ws, &two);
        assert_eq!(result, Ok(()));
        let message = |data: &'static [u8]| WsFrame::Message(Bytes::from_static(data));
        assert_eq!(frames, [message(b"OPTIONS one"), message(&[0xff, 1])]);
        // A message in two frames, cut anywhere.
        let (first, rest) = (frame(0x01, b"OPT"), frame(0x80, b"IONS"));
        assert_eq!(take(&mut ws, &first).0, []);
        assert!(ws.partial());
        assert_eq!(take(&mut ws, &rest).0, [message(b"OPTIONS")]);
        assert!(!ws.partial());
        assert_eq!(take(&mut ws, &frame(0x89, b"x")).0, [WsFrame::Alive]);
        assert_eq!(&ws.take_output()[..], [0x8a, 1, b'x']);
        assert_eq!(take(&mut ws, &frame(0x81, b"\r\n\r\n")).0, [WsFrame::Ping]);
        ws.send(&Bytes::from_static(b"SIP/2.0 200 OK")).unwrap();
        assert_eq!(&ws.take_output()[..2], [0x81, 14]);
        ws.ping();
        assert_eq!(&ws.take_output()[..], [0x89, 0]);
    }

    #[test]
    fn rfc6455_broken_frames_end_the_connection_with_a_close() {
        for bad in [
            // No mask, reserved bits, an unknown opcode, too long, text that is none.
            vec![0x81, 1, b'x'],
            frame(0xf1, b"x"),
            frame(0x83, b"x"),
            [&[0x81, 0xff][..], &[0x7f; 8], &[0; 4]].concat(),
            frame(0x81, &[0xff, 0xfe]),
        ] {
            let mut ws = open();
            assert!(take(&mut ws, &bad).1.is_err(), "{bad:?}");
        }
        let mut ws = open();
        let (frames, result) = take(&mut ws, &frame(0x88, &[]));
        assert_eq!((frames.len(), result), (0, Err("closed by the peer".to_owned())));
        assert_eq!(&ws.take_output()[..], [0x88, 0]);
    }
}
