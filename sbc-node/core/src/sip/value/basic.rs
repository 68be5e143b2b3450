//! Values made of a few tokens and numbers: CSeq, RAck.

use std::fmt;

use super::{FromValue, ValueError};
use crate::sip::scan::{is_token, number, trim};
use crate::sip::write::{Out, WriteValue};

/// CSeq (RFC 3261 §20.16). The number is below 2^31 (§8.1.1.5) on all that `validate` lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CSeq<'a> {
    pub number: u32,
    pub method: &'a str,
}

impl<'a> FromValue<'a> for CSeq<'a> {
    #[inline]
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let digits = text.bytes().position(|b| !b.is_ascii_digit()).ok_or(ValueError::Syntax)?;
        let (digits, method) = text.split_at_checked(digits).ok_or(ValueError::Syntax)?;
        let number =
            number(digits).and_then(|n| u32::try_from(n).ok()).ok_or(ValueError::Number)?;
        let blank = matches!(method.as_bytes(), [b' ' | b'\t', ..]);
        // One blank is what nearly everybody writes.
        let method = trim(method.get(usize::from(blank)..).unwrap_or(""));
        if !blank || !is_token(method) {
            return Err(ValueError::Syntax);
        }
        Ok(CSeq { number, method })
    }
}

impl WriteValue for CSeq<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        out.int(u64::from(self.number));
        out.str(" ");
        out.str(self.method);
    }
}

impl fmt::Display for CSeq<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.method)
    }
}

/// RAck (RFC 3262 §7.2): which provisional response a PRACK acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RAck<'a> {
    pub rseq: u32,
    pub cseq: CSeq<'a>,
}

impl<'a> FromValue<'a> for RAck<'a> {
    fn from_value(text: &'a str) -> Result<Self, ValueError> {
        let (rseq, rest) = text.split_once([' ', '\t']).ok_or(ValueError::Syntax)?;
        let rseq = number(rseq).and_then(|n| u32::try_from(n).ok()).ok_or(ValueError::Number)?;
        Ok(RAck { rseq, cseq: CSeq::from_value(trim(rest))? })
    }
}

impl WriteValue for RAck<'_> {
    fn write_value(&self, out: &mut Out<'_>) {
        out.int(u64::from(self.rseq));
        out.str(" ");
        self.cseq.write_value(out);
    }
}
