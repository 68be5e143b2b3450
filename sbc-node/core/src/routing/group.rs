//! Groups of trunks and the order in which their members are tried.
//!
//! Which members are usable is the table's question; here is only the choice.

use std::sync::Arc;

use rand::{Rng, RngExt};
use smallvec::SmallVec;

use super::admission::CallLimits;

/// How a group orders its members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// As configured: the first that is usable, then the next.
    #[default]
    Ordered,
    /// Each call draws an order in which a member comes early in proportion to its weight; weight
    /// 0 comes after all others.
    Weighted,
}

/// A trunk of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub trunk: Arc<str>,
    /// Only for [`Strategy::Weighted`].
    pub weight: u32,
}

/// A group as configured.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub name: Arc<str>,
    pub strategy: Strategy,
    pub members: Vec<Member>,
    pub limits: CallLimits,
}

/// Orders `items` (with their weights): weighted draws without replacement, as in RFC 2782.
pub(super) fn weighted_order<T>(
    mut items: SmallVec<[(u32, T); 4]>,
    rng: &mut impl Rng,
) -> SmallVec<[T; 4]> {
    let mut order = SmallVec::with_capacity(items.len());
    while !items.is_empty() {
        let total: u64 = items.iter().map(|(w, _)| u64::from(*w)).sum();
        let at = if total == 0 {
            0
        } else {
            let mut draw = rng.random_range(0..total);
            let drawn = items.iter().position(|(w, _)| {
                let hit = draw < u64::from(*w);
                draw = draw.saturating_sub(u64::from(*w));
                hit
            });
            drawn.unwrap_or(0)
        };
        order.push(items.remove(at).1);
    }
    order
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn draws_in_proportion_to_the_weights() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut first = [0u32; 3];
        for _ in 0..10_000 {
            let order = weighted_order(smallvec![(70, 0usize), (30, 1), (0, 2)], &mut rng);
            first[order[0]] += 1;
            assert_eq!(order[2], 2);
        }
        assert!((6_800..7_200).contains(&first[0]), "{first:?}");
        assert_eq!(first[2], 0);
    }

    #[test]
    fn the_same_seed_draws_the_same_orders() {
        let orders = || {
            let mut rng = StdRng::seed_from_u64(42);
            (0..20)
                .map(|_| weighted_order(smallvec![(1, 'a'), (1, 'b'), (1, 'c')], &mut rng))
                .collect::<Vec<_>>()
        };
        assert_eq!(orders(), orders());
    }
}
