//! The non-INVITE client transaction: RFC 3261 §17.1.2, with RFC 4320 §4.2 on what a timeout is.
//!
//! Pure: a state, an input and the timer values yield the next state and what to do.
//!
//! ```text
//!                                  | request from TU
//!                                  | request sent
//!              Timer E fires       V
//!              reset E,      +-----------+   Timer F fires or
//!              request sent  |           |   transport error, inform TU
//!                 +----------|  Trying   |------------------------+
//!                 +--------->|           |                        |
//!                            +-----------+                        |
//!              200-699          |     | 1xx                       |
//!              resp. to TU      |     | resp. to TU               |
//!            +------------------+     V                           |
//!            |               +-----------+   Timer F fires or     |
//!            | Timer E fires |           |   transport error,     |
//!            | reset E to T2,|Proceeding |   inform TU            |
//!            | request sent  |           |----------------------->|
//!            |    +----------|           |--+                     |
//!            |    +--------->|           |<-+ 1xx, resp. to TU    |
//!            |               +-----------+                        |
//!            |                     | 200-699                      |
//!            |                     | resp. to TU                  |
//!            |                     V                              |
//!            |               +-----------+                        |
//!            +-------------->| Completed | 1xx-6xx absorbed       |
//!                            +-----------+                        |
//!                                  | Timer K fires                |
//!                                  V                              |
//!                            +------------+                       |
//!                            | Terminated |<----------------------+
//!                            +------------+
//! ```
//!
//! RFC 4320 §4.2: the timeout is told to the TU and never becomes a 408 upstream.

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::TimerConfig;

/// States named as in the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonInviteClient {
    /// `interval` is what timer E runs for now; unused over reliable transports.
    Trying {
        interval: Duration,
    },
    Proceeding,
    Completed,
    Terminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    E,
    F,
    K,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// 1xx.
    Provisional,
    /// 2xx-6xx.
    Final,
    Timer(Timer),
    /// The message sent last could not be sent.
    TransportError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    SendRequest,
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

impl NonInviteClient {
    /// The request leaves. Timer E does not run over a reliable transport.
    pub fn start(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        let mut actions: Actions =
            smallvec![Action::SendRequest, Action::Start(Timer::F, timers.f)];
        if reliable {
            actions.push(Action::ReleaseRequest);
        } else {
            actions.push(Action::Start(Timer::E, timers.t1));
        }
        (NonInviteClient::Trying { interval: timers.t1 }, actions)
    }

    /// One edge of the figure. `reliable` is about the transport in use.
    #[must_use]
    pub fn step(self, input: Input, timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        use Action as Do;
        use NonInviteClient as S;
        let stay: (Self, Actions) = (self, smallvec![]);
        match (self, input) {
            (S::Trying { interval }, Input::Timer(Timer::E)) => {
                let interval = (interval * 2).min(timers.t2);
                (S::Trying { interval }, smallvec![Do::SendRequest, Do::Start(Timer::E, interval)])
            }
            (S::Proceeding, Input::Timer(Timer::E)) => {
                (S::Proceeding, smallvec![Do::SendRequest, Do::Start(Timer::E, timers.t2)])
            }
            (S::Trying { .. } | S::Proceeding, Input::Timer(Timer::F)) => {
                (S::Terminated, smallvec![Do::InformTimeout])
            }
            (S::Trying { .. } | S::Proceeding, Input::TransportError) => {
                (S::Terminated, smallvec![Do::InformTransportError])
            }
            (S::Trying { .. } | S::Proceeding, Input::Provisional) => {
                (S::Proceeding, smallvec![Do::Deliver])
            }
            (S::Trying { .. } | S::Proceeding, Input::Final) => Self::complete(timers, reliable),
            (S::Trying { .. } | S::Proceeding, Input::Timer(Timer::K)) => stay,

            (S::Completed, Input::Timer(Timer::K)) => (S::Terminated, smallvec![]),
            (
                S::Completed,
                Input::Provisional
                | Input::Final
                | Input::TransportError
                | Input::Timer(Timer::E | Timer::F),
            ) => stay,

            (
                S::Terminated,
                Input::Provisional | Input::Final | Input::TransportError | Input::Timer(_),
            ) => stay,
        }
    }

    /// Timer K is zero over a reliable transport, which makes Completed last no time.
    fn complete(timers: &TimerConfig, reliable: bool) -> (Self, Actions) {
        let mut actions: Actions = smallvec![Action::Stop(Timer::E), Action::Stop(Timer::F)];
        let next = if reliable {
            NonInviteClient::Terminated
        } else {
            actions.push(Action::Start(Timer::K, timers.t4));
            actions.push(Action::ReleaseRequest);
            NonInviteClient::Completed
        };
        actions.push(Action::Deliver);
        (next, actions)
    }
}
