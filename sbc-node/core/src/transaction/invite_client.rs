//! The INVITE client transaction: RFC 3261 §17.1.1 as corrected by RFC 6026 §7.2 and §8.4.
//!
//! Pure: a state, an input and the timer values yield the next state and what to do. Bytes,
//! destinations and the wheel belong to the layer.
//!
//! ```text
//!                                    | INVITE from TU
//!                  Timer A fires     | INVITE sent              Timer B fires
//!                  reset A,          V                          or transport error
//!                  INVITE sent +-----------+                    inform TU
//!                    +---------|           |--------------------------+
//!                    |         |  Calling  |                          |
//!                    +-------->|           |-----------+              |
//!   300-699                    +-----------+ 2xx       |              |
//!   ACK sent                      |  | 1xx             |              |
//!   resp. to TU                   |  | 1xx to TU       |              |
//!  +------------------------------+  V                 |              |
//!  |                           +-----------+           |  Cancelled   |
//!  |                 1xx to TU |           | 2xx       |  fires       |
//!  |                    +------|Proceeding |---------->|  inform TU   |
//!  |                    +----->|           |-----------|------------->|
//!  |                           +-----------+ 2xx to TU |              |
//!  |                300-699       |                    |              |
//!  |                ACK sent      |                    |              |
//!  |                resp. to TU   |                    |              |
//!  |                              V                    V              |
//!  |   300-699             +-----------+         +-----------+        |
//!  |   ACK sent    +-------|           |         |           |--+     |
//!  |               +------>| Completed |         | Accepted  |  | 2xx to TU
//!  +---------------------->|           |         |           |<-+     |
//!                          +-----------+         +-----------+        |
//!                             |     | transport        | Timer M      |
//!                     Timer D |     | error            | fires        |
//!                     fires   |     | inform TU        |              |
//!                             V     V                  V              |
//!                          +--------------------------------+         |
//!                          |           Terminated           |<--------+
//!                          +--------------------------------+
//! ```
//!
//! `Cancelled` is the wait of RFC 3261 §9.1: a UAC that sent CANCEL gives the INVITE up after
//! 64*T1 without a final response. It runs in Proceeding, since CANCEL waits for a provisional.

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::TimerConfig;

/// States named as in the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InviteClient {
    /// `interval` is what timer A runs for now; unused over reliable transports.
    Calling {
        interval: Duration,
    },
    Proceeding,
    Accepted,
    Completed,
    Terminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    A,
    B,
    D,
    M,
    /// RFC 3261 §9.1, last paragraph.
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// 1xx.
    Provisional,
    /// 2xx.
    Success,
    /// 3xx-6xx.
    Failure,
    Timer(Timer),
    /// The message sent last could not be sent.
    TransportError,
    /// The only way by which a response can come is gone.
    Disconnected,
    /// The TU's CANCEL is on its way.
    CancelSent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    SendRequest,
    /// Build the ACK of RFC 3261 §17.1.1.3 from the request and this response, keep and send it.
    SendAck,
    /// Send the kept ACK again.
    ResendAck,
    /// Pass the response to the TU.
    Deliver,
    InformTimeout,
    InformTransportError,
    Start(Timer, Duration),
    Stop(Timer),
    /// The request's bytes are needed no more.
    ReleaseRequest,
}

pub type Actions = SmallVec<[Action; 6]>;

impl InviteClient {
    /// The INVITE leaves. Timer A does not run over a reliable transport.
    pub fn start(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        let mut actions: Actions =
            smallvec![Action::SendRequest, Action::Start(Timer::B, timers.b)];
        if !reliable {
            actions.push(Action::Start(Timer::A, timers.t1));
        }
        (InviteClient::Calling { interval: timers.t1 }, actions)
    }

    /// One edge of the figure. `reliable` is about the transport in use.
    #[must_use]
    pub fn step(self, input: Input, timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        use Action as Do;
        use InviteClient as S;
        let stay: (Self, Actions) = (self, smallvec![]);
        match (self, input) {
            (S::Calling { .. }, Input::Provisional) => {
                (S::Proceeding, smallvec![Do::Stop(Timer::A), Do::Stop(Timer::B), Do::Deliver])
            }
            (S::Calling { .. } | S::Proceeding, Input::Success) => (
                S::Accepted,
                smallvec![
                    Do::Stop(Timer::A),
                    Do::Stop(Timer::B),
                    Do::Stop(Timer::Cancelled),
                    Do::Start(Timer::M, timers.m),
                    Do::ReleaseRequest,
                    Do::Deliver,
                ],
            ),
            (S::Calling { .. } | S::Proceeding, Input::Failure) => Self::complete(timers, reliable),
            (S::Calling { interval }, Input::Timer(Timer::A)) => {
                let interval = interval * 2;
                (S::Calling { interval }, smallvec![Do::SendRequest, Do::Start(Timer::A, interval)])
            }
            (S::Calling { .. }, Input::Timer(Timer::B)) => {
                (S::Terminated, smallvec![Do::InformTimeout])
            }
            (S::Calling { .. } | S::Completed, Input::TransportError | Input::Disconnected)
            | (S::Proceeding, Input::Disconnected) => {
                (S::Terminated, smallvec![Do::InformTransportError])
            }
            (
                S::Calling { .. },
                Input::CancelSent | Input::Timer(Timer::D | Timer::M | Timer::Cancelled),
            ) => stay,

            (S::Proceeding, Input::Provisional) => (S::Proceeding, smallvec![Do::Deliver]),
            (S::Proceeding, Input::CancelSent) => {
                (S::Proceeding, smallvec![Do::Start(Timer::Cancelled, timers.cancelled)])
            }
            (S::Proceeding, Input::Timer(Timer::Cancelled)) => {
                (S::Terminated, smallvec![Do::InformTimeout])
            }
            (
                S::Proceeding,
                Input::TransportError | Input::Timer(Timer::A | Timer::B | Timer::D | Timer::M),
            ) => stay,

            (S::Accepted, Input::Success) => (S::Accepted, smallvec![Do::Deliver]),
            (S::Accepted, Input::Timer(Timer::M)) => (S::Terminated, smallvec![]),
            (
                S::Accepted,
                Input::Provisional
                | Input::Failure
                | Input::TransportError
                | Input::Disconnected
                | Input::CancelSent
                | Input::Timer(Timer::A | Timer::B | Timer::D | Timer::Cancelled),
            ) => stay,

            (S::Completed, Input::Failure) => (S::Completed, smallvec![Do::ResendAck]),
            (S::Completed, Input::Timer(Timer::D)) => (S::Terminated, smallvec![]),
            (
                S::Completed,
                Input::Provisional
                | Input::Success
                | Input::CancelSent
                | Input::Timer(Timer::A | Timer::B | Timer::M | Timer::Cancelled),
            ) => stay,

            (
                S::Terminated,
                Input::Provisional
                | Input::Success
                | Input::Failure
                | Input::Timer(_)
                | Input::TransportError
                | Input::Disconnected
                | Input::CancelSent,
            ) => stay,
        }
    }

    /// Timer D is zero over a reliable transport, which makes Completed last no time.
    fn complete(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        let mut actions: Actions = smallvec![
            Action::Stop(Timer::A),
            Action::Stop(Timer::B),
            Action::Stop(Timer::Cancelled),
            Action::SendAck,
        ];
        let next = if reliable {
            InviteClient::Terminated
        } else {
            actions.push(Action::Start(Timer::D, timers.d));
            InviteClient::Completed
        };
        actions.push(Action::Deliver);
        (next, actions)
    }
}
