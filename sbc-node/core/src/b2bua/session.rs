//! re-INVITE, UPDATE and session refreshes.

use super::call::{Asked, Call, CallTimer, DialogRef, Exchange, Leg, Phase};
use super::env::Cx;
use crate::media::Side;
use crate::sip::Message;
use crate::transaction::ServerId;

impl Call {
    pub(crate) fn reinvite(&mut self, cx: &mut Cx<'_>, side: Side, asked: Asked) {
        self.answer(cx, side, &asked, 488, &[]);
    }
    pub(crate) fn update(&mut self, cx: &mut Cx<'_>, dialog: DialogRef, asked: Asked) {
        self.answer(cx, dialog.side, &asked, 488, &[]);
    }
    pub(crate) fn session_final(&mut self, _cx: &mut Cx<'_>, _e: Box<Exchange>, _m: &Message) {}
    pub(crate) fn refresh_final(&mut self, _cx: &mut Cx<'_>, _e: Box<Exchange>, _m: &Message) {}
    pub(crate) fn reinvite_progress(&mut self, _cx: &mut Cx<'_>, _at: usize, _m: &Message) {}
    pub(crate) fn reinvite_cancelled(&mut self, _cx: &mut Cx<'_>, _s: ServerId, _m: &Message) {}
    pub(crate) fn reinvite_ok_again(&mut self, _cx: &mut Cx<'_>, _m: &Message) {}
    pub(crate) fn retry_reinvite(&mut self, _cx: &mut Cx<'_>, _side: Side) {}
    pub(crate) fn session_timer(&mut self, _cx: &mut Cx<'_>, _side: Side) {}

    pub(crate) fn arm_session(&mut self, cx: &mut Cx<'_>, side: Side) {
        let due = self.leg(side).and_then(|l| l.timer.as_ref()).map(|t| t.due());
        let slot = match side {
            Side::A => &mut self.timers.session_a,
            Side::B => &mut self.timers.session_b,
        };
        cx.disarm(slot);
        *slot = due.map(|at| cx.arm(at, self.key, CallTimer::Session(side)));
    }

    /// The leg that a request in a dialog belongs to: a fork's while the call is set up.
    pub(crate) fn dialog_leg_mut(
        &mut self,
        dialog: &DialogRef,
        remote_tag: &str,
    ) -> Option<&mut Leg> {
        match (dialog.side, &mut self.phase) {
            (Side::A, _) => Some(&mut self.a),
            (Side::B, Phase::Setup(setup)) if self.b.is_none() => setup
                .attempt
                .as_mut()?
                .forks
                .iter_mut()
                .map(|f| &mut f.leg)
                .find(|l| *l.dialog.remote_tag == *remote_tag),
            (Side::B, _) => self.b.as_mut(),
        }
    }
}
