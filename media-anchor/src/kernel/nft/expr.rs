//! nf_tables expressions that `nftnl` has no type for, built on `nftnl-sys`: payload writes, maps
//! with data, forwarding, 32-bit registers.
//!
//! Only the making of expressions lives here; which ones make a rule is `ruleset.rs`.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::{Rule, nftnl_sys as sys};

/// NFT_REG32_00: the first of sixteen 4-byte registers.
const REG32_00: u32 = 8;

/// 4-byte register `n` (0..=15).
pub(super) fn reg(n: u32) -> u32 {
    debug_assert!(n < 16);
    REG32_00 + n
}

/// Two registers one behind the other, moved by [`Expr::shift16`], give in the second of the result
/// the last two bytes of the one at `JOIN_FIRST`, then the first two of the one at `JOIN_THEN`: the
/// kernel shifts words of the host.
pub(super) const JOIN_FIRST: u32 = if cfg!(target_endian = "little") { 1 } else { 0 };
pub(super) const JOIN_THEN: u32 = 1 - JOIN_FIRST;

/// Base of a payload access.
#[derive(Clone, Copy)]
pub(super) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// How a write keeps checksums right.
#[derive(Clone, Copy)]
pub(super) enum Csum {
    /// The Internet checksum at this offset of the same header.
    Inet { offset: u32 },
    /// No checksum in this header.
    None,
}

enum Value {
    U32(u32),
    Bytes(Vec<u8>),
    Text(CString),
}

/// One expression: its kind and attributes.
pub(super) struct Expr {
    kind: &'static CStr,
    attrs: Vec<(u16, Value)>,
}

impl Expr {
    fn new(kind: &'static CStr) -> Self {
        Expr { kind, attrs: Vec::new() }
    }

    fn u32(mut self, attr: u32, value: u32) -> Self {
        self.attrs.push((narrow(attr), Value::U32(value)));
        self
    }

    fn bytes(mut self, attr: u32, value: &[u8]) -> Self {
        self.attrs.push((narrow(attr), Value::Bytes(value.to_vec())));
        self
    }

    /// `meta KEY → register`.
    pub(super) fn meta(key: i32, dreg: u32) -> Self {
        Expr::new(c"meta")
            .u32(sys::NFTNL_EXPR_META_KEY, key.unsigned_abs())
            .u32(sys::NFTNL_EXPR_META_DREG, dreg)
    }

    /// Goes on only when the register equals `data`.
    pub(super) fn equals(sreg: u32, data: &[u8]) -> Self {
        Expr::new(c"cmp")
            .u32(sys::NFTNL_EXPR_CMP_SREG, sreg)
            .u32(sys::NFTNL_EXPR_CMP_OP, libc::NFT_CMP_EQ.unsigned_abs())
            .bytes(sys::NFTNL_EXPR_CMP_DATA, data)
    }

    /// `sreg & mask ^ xor → dreg`; of 4 bytes it is evaluated inline.
    pub(super) fn bits(sreg: u32, dreg: u32, mask: [u8; 4], xor: [u8; 4]) -> Self {
        Expr::new(c"bitwise")
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, sreg)
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, dreg)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, 4)
            .bytes(sys::NFTNL_EXPR_BITWISE_MASK, &mask)
            .bytes(sys::NFTNL_EXPR_BITWISE_XOR, &xor)
    }

    /// Moves two registers from `sreg` on by sixteen bits, as one number of 64 bits of the host, to
    /// `dreg` on: see [`JOIN_FIRST`].
    pub(super) fn shift16(sreg: u32, dreg: u32) -> Self {
        const RIGHT: u32 = 2; // NFT_BITWISE_RSHIFT
        Expr::new(c"bitwise")
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, sreg)
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, dreg)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, 8)
            .u32(sys::NFTNL_EXPR_BITWISE_OP, RIGHT)
            .bytes(sys::NFTNL_EXPR_BITWISE_DATA, &16u32.to_ne_bytes())
    }

    /// Loads `len` bytes of the packet.
    pub(super) fn load(base: Base, offset: u32, len: u32, dreg: u32) -> Self {
        Expr::new(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base as u32)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, len)
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, dreg)
    }

    /// Writes `len` bytes of the packet; `pseudo` says that they count in the UDP checksum. A
    /// datagram without a UDP checksum stays without one.
    pub(super) fn store(
        base: Base,
        offset: u32,
        len: u32,
        sreg: u32,
        csum: Csum,
        pseudo: bool,
    ) -> Self {
        let (kind, at) = match csum {
            Csum::Inet { offset } => (libc::NFT_PAYLOAD_CSUM_INET.unsigned_abs(), offset),
            Csum::None => (libc::NFT_PAYLOAD_CSUM_NONE.unsigned_abs(), 0),
        };
        let expr = Expr::new(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base as u32)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, len)
            .u32(sys::NFTNL_EXPR_PAYLOAD_SREG, sreg)
            .u32(sys::NFTNL_EXPR_PAYLOAD_CSUM_TYPE, kind)
            .u32(sys::NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, at);
        if pseudo {
            // NFT_PAYLOAD_L4CSUM_PSEUDOHDR
            expr.u32(sys::NFTNL_EXPR_PAYLOAD_FLAGS, 1)
        } else {
            expr
        }
    }

    /// Looks the key at `sreg` up in a set; with `dreg` it is a map whose data goes there. A miss
    /// ends the rule.
    pub(super) fn lookup(set: &str, set_id: u32, sreg: u32, dreg: Option<u32>) -> Self {
        let mut expr = Expr::new(c"lookup")
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, sreg)
            .u32(sys::NFTNL_EXPR_LOOKUP_SET_ID, set_id);
        let name = CString::new(set).expect("set names have no NUL");
        expr.attrs.push((narrow(sys::NFTNL_EXPR_LOOKUP_SET), Value::Text(name)));
        match dreg {
            Some(dreg) => expr.u32(sys::NFTNL_EXPR_LOOKUP_DREG, dreg),
            None => expr,
        }
    }

    /// A constant into a register.
    pub(super) fn immediate(dreg: u32, data: &[u8]) -> Self {
        Expr::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, dreg)
            .bytes(sys::NFTNL_EXPR_IMM_DATA, data)
    }

    /// Drops the packet.
    pub(super) fn drop() -> Self {
        Expr::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT.unsigned_abs())
            .u32(sys::NFTNL_EXPR_IMM_VERDICT, libc::NF_DROP.unsigned_abs())
    }

    /// A counter of its own.
    pub(super) fn counter() -> Self {
        Expr::new(c"counter")
    }

    /// Sends the packet by the device in `dev` through the neighbour in `addr`; takes one off the
    /// TTL, resolves the neighbour.
    pub(super) fn forward(dev: u32, addr: u32, nfproto: i32) -> Self {
        Expr::new(c"fwd")
            .u32(sys::NFTNL_EXPR_FWD_SREG_DEV, dev)
            .u32(sys::NFTNL_EXPR_FWD_SREG_ADDR, addr)
            .u32(sys::NFTNL_EXPR_FWD_NFPROTO, nfproto.unsigned_abs())
    }
}

/// libnftnl takes attribute numbers as u16 and declares them as u32.
fn narrow(attr: u32) -> u16 {
    u16::try_from(attr).expect("libnftnl attribute numbers are small")
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string; libnftnl copies every value that it is given, and the
        // lengths are those of the slices. The caller (Rule::add_expr) takes ownership.
        unsafe {
            let Some(expr) = NonNull::new(sys::nftnl_expr_alloc(self.kind.as_ptr())) else {
                // Out of memory, or a libnftnl without this expression: as nftnl itself does.
                std::process::abort();
            };
            for (attr, value) in &self.attrs {
                match value {
                    Value::U32(v) => sys::nftnl_expr_set_u32(expr.as_ptr(), *attr, *v),
                    Value::Bytes(b) => {
                        let len = u32::try_from(b.len()).expect("an operand is at most 64 bytes");
                        sys::nftnl_expr_set(expr.as_ptr(), *attr, b.as_ptr().cast(), len);
                    }
                    Value::Text(s) => {
                        sys::nftnl_expr_set_str(expr.as_ptr(), *attr, s.as_ptr());
                    }
                }
            }
            expr
        }
    }
}
