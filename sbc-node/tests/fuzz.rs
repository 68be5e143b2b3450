//! The edge's fuzz targets on stable: seeds as they are and with damage, and any bytes. `sbc-node/fuzz`
//! runs the same targets under libFuzzer.

use proptest::prelude::*;
use sbc_node::fuzz::fuzz_radius;

/// A code and attributes behind it.
fn seeds() -> Vec<Vec<u8>> {
    let proof = [&[80, 18][..], &[1; 16]].concat();
    let aor = |text: &[u8]| [&[122, 2 + u8::try_from(text.len()).expect("short")], text].concat();
    let named =
        [aor(b"alice@example.com"), aor(b"sip:+4930@example.com"), aor(b"\xff\xfe")].concat();
    let reply = [&[18, 7][..], b"hello"].concat();
    vec![
        [&[2][..], &named].concat(),
        [&[2][..], &proof, &named].concat(),
        [&[3][..], &reply].concat(),
        [&[11][..], &reply, &proof].concat(),
        [&[5][..], &reply].concat(),
        vec![2, 122, 1],
        vec![2, 122],
        vec![2, 80, 3, 1],
        vec![2],
        Vec::new(),
    ]
}

#[test]
fn answers_of_radius_servers_are_read_or_refused() {
    seeds().iter().for_each(|seed| fuzz_radius(seed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_of_a_radius_server_are_read_or_refused(
        seed in 0usize..9,
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        cut in any::<u16>(),
        any in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        fuzz_radius(&any);
        let mut data = seeds().swap_remove(seed);
        for (at, with) in damage {
            let at = usize::from(at) % data.len();
            data[at] ^= with;
        }
        fuzz_radius(&data);
        fuzz_radius(&[&data[..], &any].concat());
        data.truncate(usize::from(cut) % (data.len() + 1));
        fuzz_radius(&data);
    }
}
