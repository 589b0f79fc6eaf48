//! The KV pool against a simple model of it, over random operations.

use pleach_engine::kv::{KvBlockId, KvPool, PrefixHash};
use proptest::prelude::*;

/// What the pool should be: users of each block, and the prefixes that can be found, the least recently used last.
#[derive(Debug, Default)]
struct Model {
    used: Vec<(KvBlockId, u32)>,
    published: Vec<(KvBlockId, PrefixHash)>,
    cached: Vec<KvBlockId>,
}

impl Model {
    fn users(&mut self, block: KvBlockId) -> Option<&mut u32> {
        self.used.iter_mut().find(|(other, _)| *other == block).map(|(_, users)| users)
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Allocate,
    Publish(usize, u8),
    Find(u8),
    Release(usize),
    Forget(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Allocate),
        3 => (any::<usize>(), 0u8..12).prop_map(|(nth, prefix)| Op::Publish(nth, prefix)),
        3 => (0u8..12).prop_map(Op::Find),
        4 => any::<usize>().prop_map(Op::Release),
        1 => any::<usize>().prop_map(Op::Forget),
    ]
}

fn apply(op: Op, pool: &mut KvPool, model: &mut Model) {
    let nth_used = |model: &Model, nth: usize| {
        (!model.used.is_empty()).then(|| model.used[nth % model.used.len()].0)
    };
    match op {
        Op::Allocate => {
            let Some(block) = pool.allocate() else {
                assert_eq!(model.used.len(), pool.n_total(), "refused although blocks were unused");
                return;
            };
            if let Some(index) = model.cached.iter().position(|cached| *cached == block) {
                assert_eq!(index, 0, "not the least recently used");
                assert_eq!(
                    model.used.len() + model.cached.len(),
                    pool.n_total(),
                    "evicted although one was free"
                );
                model.cached.remove(0);
                model.published.retain(|(other, _)| *other != block);
            }
            assert!(model.users(block).is_none(), "{block:?} given twice");
            model.used.push((block, 1));
        }
        Op::Publish(nth, prefix) => {
            let Some(block) = nth_used(model, nth) else { return };
            let hash = PrefixHash::root(&[prefix; 32]);
            let is_known = model.published.iter().any(|(_, other)| *other == hash);
            if model.published.iter().any(|(other, _)| *other == block) && !is_known {
                return; // A block has one prefix: publishing it as another is a bug that the pool would report.
            }
            pool.publish(block, hash);
            if !is_known {
                model.published.push((block, hash));
            }
        }
        Op::Find(prefix) => {
            let hash = PrefixHash::root(&[prefix; 32]);
            let found = pool.find(&hash);
            assert_eq!(
                found,
                model.published.iter().find(|(_, other)| *other == hash).map(|(block, _)| *block)
            );
            let Some(block) = found else { return };
            pool.acquire(block);
            model.cached.retain(|cached| *cached != block);
            match model.users(block) {
                Some(users) => *users += 1,
                None => model.used.push((block, 1)),
            }
        }
        Op::Release(nth) => {
            let Some(block) = nth_used(model, nth) else { return };
            pool.release(block);
            let users = model.users(block).expect("released by a user");
            *users -= 1;
            if *users == 0 {
                model.used.retain(|(other, _)| *other != block);
                if model.published.iter().any(|(other, _)| *other == block) {
                    model.cached.push(block);
                }
            }
        }
        Op::Forget(nth) => {
            let Some(block) = nth_used(model, nth) else { return };
            pool.forget(block);
            model.published.retain(|(other, _)| *other != block);
        }
    }
}

proptest! {
    #[test]
    fn pool_behaves_like_its_model(n_blocks in 0usize..9, ops in proptest::collection::vec(op(), 0..200)) {
        let mut pool = KvPool::new(n_blocks);
        let mut model = Model::default();
        for op in ops {
            apply(op, &mut pool, &mut model);
            pool.check();
            prop_assert_eq!(pool.n_used(), model.used.len());
            prop_assert_eq!(pool.n_cached(), model.cached.len());
            prop_assert_eq!(pool.n_available(), n_blocks - model.used.len());
        }
        while let Some((block, users)) = model.used.pop() {
            for _ in 0..users {
                pool.release(block);
            }
        }
        pool.check();
        prop_assert_eq!(pool.n_available(), n_blocks);
    }
}

#[test]
#[should_panic(expected = "released an unused kv block")]
fn giving_back_twice_is_noticed() {
    let mut pool = KvPool::new(2);
    let block = pool.allocate().unwrap();
    pool.release(block);
    pool.release(block);
}
