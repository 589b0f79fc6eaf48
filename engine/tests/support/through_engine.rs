//! Sequences through the real scheduler and owner thread.

use std::sync::Arc;

use pleach_engine::{
    backend::StepRunner,
    engine::{AdapterLease, EngineConfig, EngineHandle, EngineStats},
    sequence::{FlowId, SequenceEvent, SequenceRequest},
};

use super::{
    random::Random,
    wanted::{Chosen, Wanted},
};

/// All of `wanted` through an engine of its own, submitted at once, among others that vanish; with the engine's numbers.
pub(crate) fn through_engine(
    runner: Box<dyn StepRunner>,
    config: EngineConfig,
    wanted: &[&Wanted],
    random: &mut Random,
) -> (Vec<Vec<Chosen>>, EngineStats) {
    let engine = EngineHandle::start(runner, config).unwrap();
    let request = |wanted: &Wanted| {
        let mut kv_key = [0; 32];
        if let Some(slot) = wanted.adapter {
            kv_key[..4].copy_from_slice(&(slot.0 + 1).to_le_bytes());
        }
        SequenceRequest {
            prompt: wanted.prompt.clone(),
            adapter: wanted.adapter.map(AdapterLease::permanent),
            kv_key,
            flow: FlowId::default(),
            sampling: Arc::clone(&wanted.params),
            max_tokens: wanted.n_tokens,
            min_tokens: 0,
            stop_tokens: Vec::new(),
            prompt_logprobs: None,
        }
    };
    let mut streams = Vec::new();
    let mut vanishing = Vec::new();
    for wanted in wanted {
        if random.chance(30) {
            vanishing.push(engine.submit(request(wanted)).unwrap());
        }
        streams.push(engine.submit(request(wanted)).unwrap());
    }
    for mut stream in vanishing {
        for _ in 0..random.below(4) {
            stream.blocking_recv();
        }
    }
    let mut all = Vec::new();
    for mut stream in streams {
        let mut chosen = Vec::new();
        let mut is_finished = false;
        while let Some(event) = stream.blocking_recv() {
            match event {
                SequenceEvent::Token(token) => {
                    chosen.push(Chosen::new(token.token, token.logprob, &token.top));
                }
                SequenceEvent::Finished { .. } => is_finished = true,
                SequenceEvent::Failed(message) => panic!("a sequence failed: {message}"),
                SequenceEvent::Admitted { .. } | SequenceEvent::PromptScores(_) => {}
            }
        }
        assert!(is_finished, "a stream ended without its last event");
        all.push(chosen);
    }
    (all, engine.stats())
}
