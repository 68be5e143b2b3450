//! The non-INVITE server transaction: RFC 3261 §17.2.2 as corrected by RFC 4320 §4.
//!
//! Pure: a state, an input and the timer values yield the next state and what to do.
//!
//! ```text
//!                                | request
//!                                | pass to TU
//!                                V
//!                          +------------+ request: absorbed
//!                 +--------|   Trying   |----------------+
//!                 |        +------------+                |
//!   200-699       |              | 100 from TU, or       | Expire fires
//!   from TU       |              | Trying100 fires       | inform TU,
//!   send response |              | send 100              | nothing sent
//!                 |              V                       |
//!                 |        +------------+ request:       |
//!                 |        | Proceeding | send 100       |
//!                 |        +------------+ --------------->
//!                 |              | 200-699 from TU       |
//!                 |              | send response         |
//!                 |              V                       |
//!                 |        +------------+ request:       |
//!                 +------->| Completed  | send response  |
//!                          +------------+                |
//!                                | Timer J fires         |
//!                                V                       |
//!                          +------------+                |
//!                          | Terminated |<---------------+
//!                          +------------+
//! ```
//!
//! RFC 4320 adds two things. Over UDP a 100 may not leave before a client's timer E has reached T2
//! and has to leave then when nothing else has (`Trying100`); no other provisional is allowed. And
//! an element that cannot answer before the client gave up (timer F, here `Expire`) sends nothing,
//! in particular no 408. A transport error leaves the state as it is (RFC 6026 §8.8).

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::TimerConfig;

/// States named as in the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonInviteServer {
    /// `early` while RFC 4320 §4.1 forbids a 100 over UDP.
    Trying {
        early: bool,
    },
    Proceeding,
    Completed,
    Terminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// RFC 4320 §4.1.
    Trying100,
    /// RFC 4320 §4.2.
    Expire,
    J,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The request came again.
    Request,
    /// The TU sends 100.
    Trying,
    /// The TU sends 200-699 but 408.
    Final,
    Timer(Timer),
    /// The response sent last could not be sent, and no other way is left.
    TransportError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Build a 100 from the request, keep it as the last response and send it.
    SendTrying,
    /// Keep the TU's response as the last one and send it.
    SendResponse,
    /// Send the kept response again.
    ResendResponse,
    /// The TU was too late to answer.
    InformTimeout,
    InformTransportError,
    Start(Timer, Duration),
    Stop(Timer),
}

pub type Actions = SmallVec<[Action; 6]>;

impl NonInviteServer {
    /// The request came and goes to the TU.
    pub fn start(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        let actions = smallvec![
            Action::Start(Timer::Trying100, timers.non_invite_trying()),
            Action::Start(Timer::Expire, timers.f),
        ];
        (NonInviteServer::Trying { early: !reliable }, actions)
    }

    /// Whether the TU may still send a final response.
    pub fn awaits_final(self) -> bool {
        matches!(self, NonInviteServer::Trying { .. } | NonInviteServer::Proceeding)
    }

    /// One edge of the figure. `reliable` is about the transport the request came by.
    #[must_use]
    pub fn step(self, input: Input, timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        use Action as Do;
        use NonInviteServer as S;
        let stay: (Self, Actions) = (self, smallvec![]);
        match (self, input) {
            (S::Trying { .. }, Input::Request) => stay,
            // What the TU wants to say too early is said when `Trying100` fires.
            (S::Trying { early: true }, Input::Trying) => stay,
            (S::Trying { early: false }, Input::Trying) => {
                (S::Proceeding, smallvec![Do::Stop(Timer::Trying100), Do::SendResponse])
            }
            (S::Trying { .. }, Input::Timer(Timer::Trying100)) => {
                (S::Proceeding, smallvec![Do::SendTrying])
            }
            (S::Proceeding, Input::Request) => (S::Proceeding, smallvec![Do::ResendResponse]),
            (S::Proceeding, Input::Trying) => (S::Proceeding, smallvec![Do::SendResponse]),
            (S::Trying { .. } | S::Proceeding, Input::Final) => Self::complete(timers, reliable),
            (S::Trying { .. } | S::Proceeding, Input::Timer(Timer::Expire)) => {
                (S::Terminated, smallvec![Do::InformTimeout])
            }
            (S::Trying { .. }, Input::TransportError | Input::Timer(Timer::J)) => stay,
            (S::Proceeding | S::Completed, Input::TransportError) => {
                (self, smallvec![Do::InformTransportError])
            }
            (S::Proceeding, Input::Timer(Timer::J | Timer::Trying100)) => stay,

            (S::Completed, Input::Request) => (S::Completed, smallvec![Do::ResendResponse]),
            (S::Completed, Input::Timer(Timer::J)) => (S::Terminated, smallvec![]),
            (
                S::Completed,
                Input::Trying | Input::Final | Input::Timer(Timer::Trying100 | Timer::Expire),
            ) => stay,

            (
                S::Terminated,
                Input::Request
                | Input::Trying
                | Input::Final
                | Input::TransportError
                | Input::Timer(_),
            ) => stay,
        }
    }

    /// Timer J is zero over a reliable transport in the figure. It runs a moment here all the same:
    /// a response that the connection did not take shall go by a new one (RFC 3261 §18.2.2).
    fn complete(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        let mut actions: Actions = smallvec![
            Action::Stop(Timer::Trying100),
            Action::Stop(Timer::Expire),
            Action::SendResponse,
        ];
        let j = if reliable { timers.t1 * 2 } else { timers.j };
        actions.push(Action::Start(Timer::J, j));
        (NonInviteServer::Completed, actions)
    }
}
