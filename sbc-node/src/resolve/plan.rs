//! Orders candidates: NAPTR rank, SRV priority, SRV weight (RFC 2782). Pure; chance is an argument.

use std::net::{IpAddr, SocketAddr};

use rand::{Rng, RngExt};
use sbc_core::net::{Target, Transport};

/// Targets handed to the core for one query: more would only prolong a failing call.
pub const TARGETS_MAX: usize = 16;

/// One server as the DNS described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Order of its service among the services of the domain (NAPTR, or our own preference).
    pub rank: u16,
    pub priority: u16,
    pub weight: u16,
    pub transport: Transport,
    pub port: u16,
    pub addresses: Vec<IpAddr>,
}

/// Everything known about a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub candidates: Vec<Candidate>,
}

impl Plan {
    /// The order to try servers in, this time: drawn anew for every query so that load follows
    /// the weights.
    pub fn targets(&self, rng: &mut impl Rng) -> Vec<Target> {
        let mut rest: Vec<&Candidate> = self.candidates.iter().collect();
        // Weight 0 first within its group, as RFC 2782 wants for the running sum.
        rest.sort_by_key(|c| (c.rank, c.priority, c.weight != 0));
        let mut targets: Vec<Target> = Vec::new();
        while let Some(first) = rest.first() {
            let group = (first.rank, first.priority);
            let size = rest.iter().take_while(|c| (c.rank, c.priority) == group).count();
            let mut members: Vec<&Candidate> = rest.drain(..size).collect();
            while !members.is_empty() {
                let chosen = members.remove(pick(&members, rng));
                for address in &chosen.addresses {
                    let addr = SocketAddr::new(*address, chosen.port);
                    let target = Target::new(chosen.transport, addr);
                    if !targets.contains(&target) {
                        targets.push(target);
                    }
                }
            }
            if targets.len() >= TARGETS_MAX {
                break;
            }
        }
        targets.truncate(TARGETS_MAX);
        targets
    }
}

/// RFC 2782: the first whose running sum reaches a number drawn between 0 and the sum.
fn pick(members: &[&Candidate], rng: &mut impl Rng) -> usize {
    let total: u32 = members.iter().map(|c| u32::from(c.weight)).sum();
    let drawn = rng.random_range(0..=total);
    let mut running = 0;
    members
        .iter()
        .position(|c| {
            running += u32::from(c.weight);
            running >= drawn
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn candidate(rank: u16, priority: u16, weight: u16, last: u8) -> Candidate {
        Candidate {
            rank,
            priority,
            weight,
            transport: Transport::Udp,
            port: 5060,
            addresses: vec![IpAddr::from([192, 0, 2, last])],
        }
    }

    fn lasts(targets: &[Target]) -> Vec<u8> {
        let last = |t: &Target| match t.addr.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => 0,
        };
        targets.iter().map(last).collect()
    }

    #[test]
    fn rank_goes_before_priority_before_weight() {
        let plan = Plan {
            candidates: vec![
                candidate(1, 0, 100, 4),
                candidate(0, 20, 100, 3),
                candidate(0, 10, 0, 2),
            ],
        };
        assert_eq!(lasts(&plan.targets(&mut StdRng::seed_from_u64(1))), [2, 3, 4]);
    }

    #[test]
    fn rfc2782_weights_share_the_load() {
        let plan = Plan { candidates: vec![candidate(0, 0, 75, 1), candidate(0, 0, 25, 2)] };
        let mut rng = StdRng::seed_from_u64(7);
        let first = (0..4_000).filter(|_| lasts(&plan.targets(&mut rng))[0] == 1).count();
        assert!((2_850..=3_200).contains(&first), "{first} of 4000 went to weight 75");
    }

    #[test]
    fn rfc2782_weight_zero_is_seldom_first_and_never_missing() {
        let plan = Plan { candidates: vec![candidate(0, 0, 99, 1), candidate(0, 0, 0, 2)] };
        let mut rng = StdRng::seed_from_u64(7);
        let mut zero_first = 0;
        for _ in 0..4_000 {
            let order = lasts(&plan.targets(&mut rng));
            assert_eq!(order.len(), 2);
            zero_first += u32::from(order[0] == 2);
        }
        assert!((10..=80).contains(&zero_first), "{zero_first} of 4000");
    }

    #[test]
    fn the_number_of_targets_is_bounded_and_none_comes_twice() {
        let mut candidates: Vec<Candidate> =
            (0..40).map(|n| candidate(0, u16::from(n), 0, n)).collect();
        candidates.push(candidate(0, 0, 0, 0));
        let targets = Plan { candidates }.targets(&mut StdRng::seed_from_u64(1));
        assert_eq!(lasts(&targets), (0..16).collect::<Vec<u8>>());
    }
}
