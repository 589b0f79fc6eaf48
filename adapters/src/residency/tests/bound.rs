//! The bound that the module states, in a world where every millisecond brings another request for every resident.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    cases,
    fake::{CONFIG, generation},
    model::World,
};
use crate::residency::ResidencyConfig;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(100)))]

    /// Hot generations fill the device and are asked for without end; uses take up to `longest` ms. Cold ones come all at
    /// once. The one at place `p` is served within `drain_after + (p + 1) × (longest + 2)`, though no resident ever falls
    /// idle by itself.
    #[test]
    fn nobody_starves(
        hot in prop::collection::vec(10_usize..40, 1..8),
        cold in prop::collection::vec(1_usize..101, 1..5),
        longest in 1_u64..40,
        drain_after in 0_u64..60,
        lives in prop::collection::vec(1_u64..1000, 50),
    ) {
        let mut free = 100;
        let hot: Vec<_> = hot.into_iter().enumerate()
            .filter(|(_, bytes)| { let fits = *bytes <= free; if fits { free -= bytes; } fits })
            .map(|(number, bytes)| generation(number as u64, bytes)).collect();
        let cold: Vec<_> = cold.into_iter().enumerate()
            .map(|(number, bytes)| generation(100 + number as u64, bytes)).collect();
        let config = ResidencyConfig {
            drain_after: Duration::from_millis(drain_after), max_waiting: 100_000, ..CONFIG
        };
        let mut world = World::new(config, 100);
        let mut ends: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        let started = Instant::now();
        let mut served = vec![None; cold.len()];
        let mut round = 0;
        let (first, warm_up) = (cold.len() as u64, 100);
        let last = warm_up + drain_after + (first + 1) * (longest + 2);
        for millisecond in 0..=last {
            world.advance_to(started + Duration::from_millis(millisecond));
            for &digest in &hot {
                world.request(digest);
            }
            if millisecond == warm_up {
                for &digest in &cold {
                    world.request(digest);
                }
            }
            // Everything but a use takes no time.
            world.finish_all();
            round += 1;
            for (index, digest) in world.take_granted().into_iter().enumerate() {
                if let Some(place) = cold.iter().position(|cold| *cold == digest) {
                    served[place].get_or_insert(millisecond);
                }
                let life = lives[(round * 7 + index) % lives.len()] % longest + 1;
                ends.entry(millisecond + life).or_default().push(digest);
            }
            for digest in ends.remove(&(millisecond + 1)).into_iter().flatten() {
                world.release(digest);
                world.finish_all();
            }
        }
        for (place, served) in served.iter().enumerate() {
            let bound = warm_up + drain_after + (place as u64 + 1) * (longest + 2);
            prop_assert!(served.is_some_and(|at| at <= bound), "place {place} served at {served:?}, bound {bound}");
        }
    }
}
