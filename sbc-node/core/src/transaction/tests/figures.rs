//! Every edge of the four figures, as tables, and random walks that must stay inside them.
//!
//! Each table lists, for a state, every input: what the next state is and what is done. A pair that
//! a table does not name must change nothing.

use std::time::Duration;

use proptest::prelude::*;

use crate::transaction::non_invite_server;
use crate::transaction::{TimerConfig, invite_client, invite_server, non_invite_client};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn timers() -> TimerConfig {
    TimerConfig::default()
}

mod client_invite {
    use super::*;
    use invite_client::Action as Do;
    use invite_client::InviteClient::{self, *};
    use invite_client::{Input, Timer};

    const CALLING: InviteClient = Calling { interval: ms(500) };
    const STATES: [InviteClient; 5] = [CALLING, Proceeding, Accepted, Completed, Terminated];
    const INPUTS: [Input; 11] = [
        Input::Provisional,
        Input::Success,
        Input::Failure,
        Input::TransportError,
        Input::Disconnected,
        Input::CancelSent,
        Input::Timer(Timer::A),
        Input::Timer(Timer::B),
        Input::Timer(Timer::D),
        Input::Timer(Timer::M),
        Input::Timer(Timer::Cancelled),
    ];

    fn to_accepted() -> Vec<Do> {
        vec![
            Do::Stop(Timer::A),
            Do::Stop(Timer::B),
            Do::Stop(Timer::Cancelled),
            Do::Start(Timer::M, ms(32_000)),
            Do::ReleaseRequest,
            Do::Deliver,
        ]
    }

    fn to_completed(reliable: bool) -> (InviteClient, Vec<Do>) {
        let stop =
            vec![Do::Stop(Timer::A), Do::Stop(Timer::B), Do::Stop(Timer::Cancelled), Do::SendAck];
        if reliable {
            (Terminated, [stop, vec![Do::Deliver]].concat())
        } else {
            (Completed, [stop, vec![Do::Start(Timer::D, ms(32_000)), Do::Deliver]].concat())
        }
    }

    fn edge(state: InviteClient, input: Input, reliable: bool) -> (InviteClient, Vec<Do>) {
        match (state, input) {
            (Calling { .. }, Input::Provisional) => {
                (Proceeding, vec![Do::Stop(Timer::A), Do::Stop(Timer::B), Do::Deliver])
            }
            (Calling { .. } | Proceeding, Input::Success) => (Accepted, to_accepted()),
            (Calling { .. } | Proceeding, Input::Failure) => to_completed(reliable),
            (Calling { .. }, Input::Timer(Timer::A)) => (
                Calling { interval: ms(1_000) },
                vec![Do::SendRequest, Do::Start(Timer::A, ms(1_000))],
            ),
            (Calling { .. }, Input::Timer(Timer::B)) => (Terminated, vec![Do::InformTimeout]),
            (Calling { .. } | Completed, Input::TransportError)
            | (Calling { .. } | Proceeding | Completed, Input::Disconnected) => {
                (Terminated, vec![Do::InformTransportError])
            }
            (Proceeding, Input::Provisional) => (Proceeding, vec![Do::Deliver]),
            (Proceeding, Input::CancelSent) => {
                (Proceeding, vec![Do::Start(Timer::Cancelled, ms(32_000))])
            }
            (Proceeding, Input::Timer(Timer::Cancelled)) => (Terminated, vec![Do::InformTimeout]),
            (Accepted, Input::Success) => (Accepted, vec![Do::Deliver]),
            (Accepted, Input::Timer(Timer::M)) => (Terminated, vec![]),
            (Completed, Input::Failure) => (Completed, vec![Do::ResendAck]),
            (Completed, Input::Timer(Timer::D)) => (Terminated, vec![]),
            (other, _) => (other, vec![]),
        }
    }

    #[test]
    fn rfc3261_17_1_1_and_rfc6026_8_4_every_edge() {
        for reliable in [false, true] {
            for state in STATES {
                for input in INPUTS {
                    let (next, actions) = state.step(input, &timers(), reliable);
                    let expected = edge(state, input, reliable);
                    assert_eq!((next, actions.to_vec()), expected, "{state:?} {input:?}");
                }
            }
        }
    }

    #[test]
    fn rfc3261_17_1_1_2_start() {
        let (state, actions) = InviteClient::start(&timers(), false);
        assert_eq!(state, CALLING);
        assert_eq!(
            actions.to_vec(),
            [Do::SendRequest, Do::Start(Timer::B, ms(32_000)), Do::Start(Timer::A, ms(500))]
        );
        let (_, actions) = InviteClient::start(&timers(), true);
        assert_eq!(actions.to_vec(), [Do::SendRequest, Do::Start(Timer::B, ms(32_000))]);
    }

    #[test]
    fn rfc3261_17_1_1_2_timer_a_doubles_without_bound() {
        let mut state = CALLING;
        for expected in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000] {
            let (next, actions) = state.step(Input::Timer(Timer::A), &timers(), false);
            assert_eq!(actions[1], Do::Start(Timer::A, ms(expected)));
            state = next;
        }
    }

    proptest! {
        /// Whatever comes: the TU hears of at most one end (timeout, transport error, non-2xx),
        /// never a 2xx after it, and a terminated machine does nothing.
        #[test]
        fn one_outcome(walk in proptest::collection::vec(0..INPUTS.len(), 0..40), reliable: bool) {
            let mut state = InviteClient::start(&timers(), reliable).0;
            let (mut ends, mut accepted) = (0, false);
            for pick in walk {
                let input = INPUTS[pick];
                let (next, actions) = state.step(input, &timers(), reliable);
                let delivered = actions.contains(&Do::Deliver);
                let failed = delivered && input == Input::Failure;
                let informed = actions.contains(&Do::InformTimeout)
                    || actions.contains(&Do::InformTransportError);
                if delivered && input == Input::Success {
                    prop_assert_eq!(ends, 0);
                    accepted = true;
                }
                if failed {
                    prop_assert!(!accepted);
                    prop_assert!(actions.contains(&Do::SendAck));
                }
                // After a failure the ACK alone may still be reported as unsendable.
                ends += u32::from(failed || (informed && state != Completed));
                prop_assert!(ends <= 1 && !(accepted && ends > 0));
                if state == Terminated {
                    prop_assert!(actions.is_empty() && next == Terminated);
                }
                state = next;
            }
        }
    }
}

mod client_non_invite {
    use super::*;
    use non_invite_client::Action as Do;
    use non_invite_client::NonInviteClient::{self, *};
    use non_invite_client::{Input, Timer};

    const TRYING: NonInviteClient = Trying { interval: ms(500) };
    const STATES: [NonInviteClient; 4] = [TRYING, Proceeding, Completed, Terminated];
    const INPUTS: [Input; 6] = [
        Input::Provisional,
        Input::Final,
        Input::TransportError,
        Input::Timer(Timer::E),
        Input::Timer(Timer::F),
        Input::Timer(Timer::K),
    ];

    fn edge(state: NonInviteClient, input: Input, reliable: bool) -> (NonInviteClient, Vec<Do>) {
        match (state, input) {
            (Trying { .. }, Input::Timer(Timer::E)) => (
                Trying { interval: ms(1_000) },
                vec![Do::SendRequest, Do::Start(Timer::E, ms(1_000))],
            ),
            (Proceeding, Input::Timer(Timer::E)) => {
                (Proceeding, vec![Do::SendRequest, Do::Start(Timer::E, ms(4_000))])
            }
            (Trying { .. } | Proceeding, Input::Timer(Timer::F)) => {
                (Terminated, vec![Do::InformTimeout])
            }
            (Trying { .. } | Proceeding, Input::TransportError) => {
                (Terminated, vec![Do::InformTransportError])
            }
            (Trying { .. } | Proceeding, Input::Provisional) => (Proceeding, vec![Do::Deliver]),
            (Trying { .. } | Proceeding, Input::Final) if reliable => {
                (Terminated, vec![Do::Stop(Timer::E), Do::Stop(Timer::F), Do::Deliver])
            }
            (Trying { .. } | Proceeding, Input::Final) => (
                Completed,
                vec![
                    Do::Stop(Timer::E),
                    Do::Stop(Timer::F),
                    Do::Start(Timer::K, ms(5_000)),
                    Do::ReleaseRequest,
                    Do::Deliver,
                ],
            ),
            (Completed, Input::Timer(Timer::K)) => (Terminated, vec![]),
            (other, _) => (other, vec![]),
        }
    }

    #[test]
    fn rfc3261_17_1_2_every_edge() {
        for reliable in [false, true] {
            for state in STATES {
                for input in INPUTS {
                    let (next, actions) = state.step(input, &timers(), reliable);
                    let expected = edge(state, input, reliable);
                    assert_eq!((next, actions.to_vec()), expected, "{state:?} {input:?}");
                }
            }
        }
    }

    #[test]
    fn rfc3261_17_1_2_2_timer_e_doubles_up_to_t2() {
        let mut state = TRYING;
        for expected in [1_000, 2_000, 4_000, 4_000] {
            let (next, actions) = state.step(Input::Timer(Timer::E), &timers(), false);
            assert_eq!(actions[1], Do::Start(Timer::E, ms(expected)));
            state = next;
        }
    }

    #[test]
    fn rfc3261_17_1_2_2_start() {
        let (_, actions) = NonInviteClient::start(&timers(), false);
        assert_eq!(
            actions.to_vec(),
            [Do::SendRequest, Do::Start(Timer::F, ms(32_000)), Do::Start(Timer::E, ms(500))]
        );
        let (_, actions) = NonInviteClient::start(&timers(), true);
        assert_eq!(
            actions.to_vec(),
            [Do::SendRequest, Do::Start(Timer::F, ms(32_000)), Do::ReleaseRequest]
        );
    }

    proptest! {
        #[test]
        fn one_outcome(walk in proptest::collection::vec(0..INPUTS.len(), 0..40), reliable: bool) {
            let mut state = NonInviteClient::start(&timers(), reliable).0;
            let mut ends = 0;
            for pick in walk {
                let input = INPUTS[pick];
                let (next, actions) = state.step(input, &timers(), reliable);
                let end = (actions.contains(&Do::Deliver) && input == Input::Final)
                    || actions.contains(&Do::InformTimeout)
                    || actions.contains(&Do::InformTransportError);
                ends += u32::from(end);
                prop_assert!(ends <= 1);
                prop_assert!(state != Terminated || (actions.is_empty() && next == Terminated));
                state = next;
            }
        }
    }
}

mod server_invite {
    use super::*;
    use invite_server::Action as Do;
    use invite_server::InviteServer::{self, *};
    use invite_server::{Input, Timer};

    const QUIET: InviteServer = Proceeding { answered: false };
    const ANSWERED: InviteServer = Proceeding { answered: true };
    const COMPLETED: InviteServer = Completed { interval: ms(500) };
    const STATES: [InviteServer; 6] = [QUIET, ANSWERED, COMPLETED, Accepted, Confirmed, Terminated];
    const INPUTS: [Input; 11] = [
        Input::Invite,
        Input::Ack,
        Input::Provisional,
        Input::Success,
        Input::Failure,
        Input::TransportError,
        Input::Timer(Timer::Trying),
        Input::Timer(Timer::G),
        Input::Timer(Timer::H),
        Input::Timer(Timer::I),
        Input::Timer(Timer::L),
    ];

    fn edge(state: InviteServer, input: Input, reliable: bool) -> (InviteServer, Vec<Do>) {
        match (state, input) {
            (Proceeding { answered: true }, Input::Invite) => (state, vec![Do::ResendResponse]),
            (Proceeding { answered: false }, Input::Timer(Timer::Trying)) => {
                (ANSWERED, vec![Do::SendTrying])
            }
            (Proceeding { .. }, Input::Provisional) => {
                (ANSWERED, vec![Do::Stop(Timer::Trying), Do::SendResponse])
            }
            (Proceeding { .. }, Input::Success) => (
                Accepted,
                vec![
                    Do::Stop(Timer::Trying),
                    Do::SendAndForget,
                    Do::ReleaseResponse,
                    Do::Start(Timer::L, ms(32_000)),
                ],
            ),
            (Proceeding { .. }, Input::Failure) => {
                let mut actions = vec![
                    Do::Stop(Timer::Trying),
                    Do::SendResponse,
                    Do::Start(Timer::H, ms(32_000)),
                ];
                if !reliable {
                    actions.push(Do::Start(Timer::G, ms(500)));
                }
                (COMPLETED, actions)
            }
            (Proceeding { .. } | Accepted | Completed { .. }, Input::TransportError) => {
                (state, vec![Do::InformTransportError])
            }
            (Completed { .. }, Input::Invite) => (state, vec![Do::ResendResponse]),
            (Completed { .. }, Input::Timer(Timer::G)) => (
                Completed { interval: ms(1_000) },
                vec![Do::ResendResponse, Do::Start(Timer::G, ms(1_000))],
            ),
            (Completed { .. }, Input::Ack) if reliable => (Terminated, vec![]),
            (Completed { .. }, Input::Ack) => (
                Confirmed,
                vec![
                    Do::Stop(Timer::G),
                    Do::Stop(Timer::H),
                    Do::ReleaseResponse,
                    Do::Start(Timer::I, ms(5_000)),
                ],
            ),
            (Completed { .. }, Input::Timer(Timer::H)) => (Terminated, vec![Do::InformTimeout]),
            (Accepted, Input::Success) => (Accepted, vec![Do::SendAndForget]),
            (Accepted, Input::Ack) => (Accepted, vec![Do::DeliverAck]),
            (Accepted, Input::Timer(Timer::L)) => (Terminated, vec![]),
            (Confirmed, Input::Timer(Timer::I)) => (Terminated, vec![]),
            (other, _) => (other, vec![]),
        }
    }

    #[test]
    fn rfc3261_17_2_1_and_rfc6026_7_1_every_edge() {
        for reliable in [false, true] {
            for state in STATES {
                for input in INPUTS {
                    let (next, actions) = state.step(input, &timers(), reliable);
                    let expected = edge(state, input, reliable);
                    assert_eq!((next, actions.to_vec()), expected, "{state:?} {input:?}");
                }
            }
        }
    }

    #[test]
    fn rfc3261_17_2_1_timer_g_doubles_up_to_t2() {
        let mut state = COMPLETED;
        for expected in [1_000, 2_000, 4_000, 4_000] {
            let (next, actions) = state.step(Input::Timer(Timer::G), &timers(), false);
            assert_eq!(actions[1], Do::Start(Timer::G, ms(expected)));
            state = next;
        }
    }

    #[test]
    fn rfc3261_17_2_1_trying_within_200_ms() {
        let (state, actions) = InviteServer::start(&timers());
        assert_eq!((state, actions.to_vec()), (QUIET, vec![Do::Start(Timer::Trying, ms(200))]));
    }

    proptest! {
        /// One final response at most, 2xx repeats apart, and no provisional after it.
        #[test]
        fn one_final(walk in proptest::collection::vec(0..INPUTS.len(), 0..40), reliable: bool) {
            let mut state = InviteServer::start(&timers()).0;
            let (mut failures, mut ok) = (0, 0);
            for pick in walk {
                let input = INPUTS[pick];
                let (next, actions) = state.step(input, &timers(), reliable);
                let new = actions.contains(&Do::SendResponse);
                failures += u32::from(new && input == Input::Failure);
                ok += u32::from(actions.contains(&Do::SendAndForget));
                prop_assert!(failures <= 1 && (failures == 0 || ok == 0));
                if new && input == Input::Provisional || actions.contains(&Do::SendTrying) {
                    prop_assert!(failures == 0 && ok == 0);
                }
                prop_assert!(state != Terminated || (actions.is_empty() && next == Terminated));
                state = next;
            }
        }
    }
}

mod server_non_invite {
    use super::*;
    use non_invite_server::Action as Do;
    use non_invite_server::NonInviteServer::{self, *};
    use non_invite_server::{Input, Timer};

    const EARLY: NonInviteServer = Trying { early: true };
    const TCP: NonInviteServer = Trying { early: false };
    const STATES: [NonInviteServer; 5] = [EARLY, TCP, Proceeding, Completed, Terminated];
    const INPUTS: [Input; 7] = [
        Input::Request,
        Input::Trying,
        Input::Final,
        Input::TransportError,
        Input::Timer(Timer::Trying100),
        Input::Timer(Timer::Expire),
        Input::Timer(Timer::J),
    ];

    fn edge(state: NonInviteServer, input: Input, reliable: bool) -> (NonInviteServer, Vec<Do>) {
        let finish = vec![Do::Stop(Timer::Trying100), Do::Stop(Timer::Expire), Do::SendResponse];
        match (state, input) {
            (Trying { early: false }, Input::Trying) => {
                (Proceeding, vec![Do::Stop(Timer::Trying100), Do::SendResponse])
            }
            (Trying { .. }, Input::Timer(Timer::Trying100)) => (Proceeding, vec![Do::SendTrying]),
            (Proceeding, Input::Request) => (Proceeding, vec![Do::ResendResponse]),
            (Proceeding, Input::Trying) => (Proceeding, vec![Do::SendResponse]),
            (Trying { .. } | Proceeding, Input::Final) => {
                let j = if reliable { ms(1_000) } else { ms(32_000) };
                (Completed, [finish, vec![Do::Start(Timer::J, j)]].concat())
            }
            (Trying { .. } | Proceeding, Input::Timer(Timer::Expire)) => {
                (Terminated, vec![Do::InformTimeout])
            }
            (Proceeding | Completed, Input::TransportError) => {
                (state, vec![Do::InformTransportError])
            }
            (Completed, Input::Request) => (Completed, vec![Do::ResendResponse]),
            (Completed, Input::Timer(Timer::J)) => (Terminated, vec![]),
            (other, _) => (other, vec![]),
        }
    }

    #[test]
    fn rfc3261_17_2_2_and_rfc4320_4_every_edge() {
        for reliable in [false, true] {
            for state in STATES {
                for input in INPUTS {
                    let (next, actions) = state.step(input, &timers(), reliable);
                    let expected = edge(state, input, reliable);
                    assert_eq!((next, actions.to_vec()), expected, "{state:?} {input:?}");
                }
            }
        }
    }

    #[test]
    fn rfc4320_4_1_start() {
        for (reliable, state) in [(false, EARLY), (true, TCP)] {
            let start =
                vec![Do::Start(Timer::Trying100, ms(3_500)), Do::Start(Timer::Expire, ms(32_000))];
            let (next, actions) = NonInviteServer::start(&timers(), reliable);
            assert_eq!((next, actions.to_vec()), (state, start));
        }
    }

    proptest! {
        #[test]
        fn one_final(walk in proptest::collection::vec(0..INPUTS.len(), 0..40), reliable: bool) {
            let mut state = NonInviteServer::start(&timers(), reliable).0;
            let (mut finals, mut expired) = (0, false);
            for pick in walk {
                let input = INPUTS[pick];
                let (next, actions) = state.step(input, &timers(), reliable);
                let sends = actions.contains(&Do::SendResponse) || actions.contains(&Do::SendTrying);
                prop_assert!(!(sends && (finals > 0 || expired)));
                finals += u32::from(sends && input == Input::Final);
                expired |= actions.contains(&Do::InformTimeout);
                prop_assert!(finals <= 1 && !(expired && finals > 0));
                state = next;
            }
        }
    }
}
