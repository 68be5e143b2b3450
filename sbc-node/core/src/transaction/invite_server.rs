//! The INVITE server transaction: RFC 3261 §17.2.1 as corrected by RFC 6026 §7.1 and §8.
//!
//! Pure: a state, an input and the timer values yield the next state and what to do.
//!
//! ```text
//!                                   | INVITE
//!                                   | pass INVITE to TU
//!                  INVITE           V send 100 if TU will not answer in 200 ms
//!                  send last  +------------+
//!                  1xx  +-----|            |--+ 1xx from TU: send it
//!                       +---->| Proceeding |<-+ transport error: inform TU
//!                             +------------+
//!            300-699 from TU    |        | 2xx from TU
//!            send response      |        | send response
//!                  +------------+        +--------------+
//!                  V                                    V
//!            +-----------+                        +-----------+
//!   INVITE,  |           |-+ transport            |           |-+ INVITE: absorbed
//!   Timer G  |           | | error:               |           | | 2xx from TU: send it
//!   +--------| Completed |<+ inform TU            | Accepted  |<+ ACK: pass to TU
//!   +------->|           |                        |           |   transport error: inform TU
//!   send     +-----------+                        +-----------+
//!   response   |       |  Timer H fires                 |
//!          ACK |       +---------------+                | Timer L fires
//!              V         inform TU     |                |
//!        +-----------+                 |                |
//!        | Confirmed | ACK, INVITE     |                |
//!        +-----------+ absorbed        |                |
//!              | Timer I fires         |                |
//!              V                       V                V
//!        +--------------------------------------------------+
//!        |                    Terminated                    |
//!        +--------------------------------------------------+
//! ```
//!
//! Retransmission of the 2xx until its ACK is the TU's (RFC 6026 §7.1; see `ok_retransmit.rs`).

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::TimerConfig;

/// States named as in the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InviteServer {
    /// `answered` once a provisional (ours or the TU's) was sent.
    Proceeding {
        answered: bool,
    },
    /// `interval` is what timer G runs for now; unused over reliable transports.
    Completed {
        interval: Duration,
    },
    Accepted,
    Confirmed,
    Terminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The 200 ms of RFC 3261 §17.2.1.
    Trying,
    G,
    H,
    I,
    L,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The INVITE came again.
    Invite,
    /// An ACK that matches the transaction.
    Ack,
    /// The TU sends 1xx.
    Provisional,
    /// The TU sends 2xx.
    Success,
    /// The TU sends 3xx-6xx.
    Failure,
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
    /// Send the TU's response and keep nothing: the TU repeats it.
    SendAndForget,
    /// Send the kept response again.
    ResendResponse,
    /// Pass the ACK to the TU.
    DeliverAck,
    /// No ACK came (timer H).
    InformTimeout,
    InformTransportError,
    Start(Timer, Duration),
    Stop(Timer),
    /// The kept response is needed no more.
    ReleaseResponse,
}

pub type Actions = SmallVec<[Action; 6]>;

impl InviteServer {
    /// The INVITE came and goes to the TU.
    pub fn start(timers: &TimerConfig) -> (Self, Actions) {
        let actions = smallvec![Action::Start(Timer::Trying, timers.trying)];
        (InviteServer::Proceeding { answered: false }, actions)
    }

    /// Whether the TU may still send a final response.
    pub fn awaits_final(self) -> bool {
        matches!(self, InviteServer::Proceeding { .. })
    }

    /// One edge of the figure. `reliable` is about the transport the INVITE came by.
    #[must_use]
    pub fn step(self, input: Input, timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        use Action as Do;
        use InviteServer as S;
        let stay: (Self, Actions) = (self, smallvec![]);
        match (self, input) {
            (S::Proceeding { answered }, Input::Invite) => {
                (self, if answered { smallvec![Do::ResendResponse] } else { smallvec![] })
            }
            (S::Proceeding { answered: false }, Input::Timer(Timer::Trying)) => {
                (S::Proceeding { answered: true }, smallvec![Do::SendTrying])
            }
            (S::Proceeding { .. }, Input::Provisional) => (
                S::Proceeding { answered: true },
                smallvec![Do::Stop(Timer::Trying), Do::SendResponse],
            ),
            (S::Proceeding { .. }, Input::Success) => (
                S::Accepted,
                smallvec![
                    Do::Stop(Timer::Trying),
                    Do::SendAndForget,
                    Do::ReleaseResponse,
                    Do::Start(Timer::L, timers.l),
                ],
            ),
            (S::Proceeding { .. }, Input::Failure) => {
                let mut actions: Actions = smallvec![
                    Do::Stop(Timer::Trying),
                    Do::SendResponse,
                    Do::Start(Timer::H, timers.h),
                ];
                if !reliable {
                    actions.push(Do::Start(Timer::G, timers.t1));
                }
                (S::Completed { interval: timers.t1 }, actions)
            }
            (S::Proceeding { .. } | S::Accepted | S::Completed { .. }, Input::TransportError) => {
                (self, smallvec![Do::InformTransportError])
            }
            (
                S::Proceeding { .. },
                Input::Ack
                | Input::Timer(Timer::Trying | Timer::G | Timer::H | Timer::I | Timer::L),
            ) => stay,

            (S::Completed { .. }, Input::Invite) => (self, smallvec![Do::ResendResponse]),
            (S::Completed { interval }, Input::Timer(Timer::G)) => {
                let interval = (interval * 2).min(timers.t2);
                (
                    S::Completed { interval },
                    smallvec![Do::ResendResponse, Do::Start(Timer::G, interval)],
                )
            }
            (S::Completed { .. }, Input::Ack) => Self::confirm(timers, reliable),
            (S::Completed { .. }, Input::Timer(Timer::H)) => {
                (S::Terminated, smallvec![Do::InformTimeout])
            }
            (
                S::Completed { .. },
                Input::Provisional
                | Input::Success
                | Input::Failure
                | Input::Timer(Timer::Trying | Timer::I | Timer::L),
            ) => stay,

            (S::Accepted, Input::Success) => (S::Accepted, smallvec![Do::SendAndForget]),
            (S::Accepted, Input::Ack) => (S::Accepted, smallvec![Do::DeliverAck]),
            (S::Accepted, Input::Timer(Timer::L)) => (S::Terminated, smallvec![]),
            (
                S::Accepted,
                Input::Invite
                | Input::Provisional
                | Input::Failure
                | Input::Timer(Timer::Trying | Timer::G | Timer::H | Timer::I),
            ) => stay,

            (S::Confirmed, Input::Timer(Timer::I)) => (S::Terminated, smallvec![]),
            (
                S::Confirmed,
                Input::Invite
                | Input::Ack
                | Input::Provisional
                | Input::Success
                | Input::Failure
                | Input::TransportError
                | Input::Timer(Timer::Trying | Timer::G | Timer::H | Timer::L),
            ) => stay,

            (
                S::Terminated,
                Input::Invite
                | Input::Ack
                | Input::Provisional
                | Input::Success
                | Input::Failure
                | Input::TransportError
                | Input::Timer(_),
            ) => stay,
        }
    }

    /// Timer I is zero over a reliable transport, which makes Confirmed last no time.
    fn confirm(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        if reliable {
            return (InviteServer::Terminated, smallvec![]);
        }
        let actions = smallvec![
            Action::Stop(Timer::G),
            Action::Stop(Timer::H),
            Action::ReleaseResponse,
            Action::Start(Timer::I, timers.t4),
        ];
        (InviteServer::Confirmed, actions)
    }
}
