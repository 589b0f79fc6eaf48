//! What each request asks for, drawn from the seed and the request's index alone: a run can be repeated, and requests
//! don't depend on the order in which they happen to be sent.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    random::{Random, Zipf},
    settings::{Endpoint, Length, Mix, PromptForm, Settings},
    words::WORDS,
};

/// Token ids that are plain text in every vocabulary we know: above single bytes and special tokens at the front …
const TOKEN_ID_MIN: u64 = 1000;
/// … and below the smallest vocabulary, the 32 000 of Llama 2.
const TOKEN_ID_END: u64 = 31_000;
/// The stream of random numbers that all requests share, for the common prefix. No request has this index.
const SHARED_INDEX: u64 = u64::MAX;
/// Indices of warm-up requests begin here, so that none warms the prefix of a counted one.
const WARMUP_INDEX: u64 = 1 << 62;

/// A request that is ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// The model it names.
    pub(super) model: Arc<str>,
    /// How many tokens it asks for.
    pub(super) output_tokens: u32,
    /// The body, JSON.
    pub(super) body: Vec<u8>,
}

/// Makes requests by index.
#[derive(Debug)]
pub(super) struct Plan {
    settings: Settings,
    /// The base, or the adapters.
    targets: Vec<Arc<str>>,
    zipf: Zipf,
    words: Vec<&'static str>,
    shared: Vec<u64>,
}

impl Plan {
    pub(super) fn new(settings: &Settings) -> Self {
        let names: &[String] = match settings.mix {
            Mix::Base => &[],
            Mix::Uniform | Mix::Zipf(_) | Mix::Distinct => &settings.adapters,
        };
        let mut targets: Vec<Arc<str>> = names.iter().map(|name| name.as_str().into()).collect();
        if targets.is_empty() {
            targets.push(settings.model.as_str().into());
        }
        let s = match settings.mix {
            Mix::Zipf(s) => s,
            Mix::Uniform | Mix::Distinct | Mix::Base => 0.0,
        };
        let mut random = Random::new(settings.seed, SHARED_INDEX);
        Self {
            zipf: Zipf::new(targets.len(), s),
            targets,
            words: WORDS.split_whitespace().collect(),
            shared: (0..settings.shared_prefix).map(|_| random.next()).collect(),
            settings: settings.clone(),
        }
    }

    /// The warm-up request of this index.
    pub(super) fn warmup(&self, index: u64) -> Planned {
        self.request(WARMUP_INDEX + index)
    }

    /// The request of this index.
    pub(super) fn request(&self, index: u64) -> Planned {
        let mut random = Random::new(self.settings.seed, index);
        let target = match self.settings.mix {
            Mix::Distinct => usize::try_from(index % self.targets.len() as u64)
                .expect("an index into a vector fits usize"),
            Mix::Uniform | Mix::Zipf(_) | Mix::Base => self.zipf.draw(&mut random),
        };
        let prompt_tokens = draw(self.settings.prompt_tokens, &mut random) as usize;
        let output_tokens = draw(self.settings.output_tokens, &mut random);
        let own = std::iter::repeat_with(|| random.next());
        let draws = self.shared.iter().copied().chain(own).take(prompt_tokens);
        let model = Arc::clone(&self.targets[target]);
        let body = self.body(&model, self.prompt(draws), output_tokens);
        Planned { body: body.to_string().into_bytes(), model, output_tokens }
    }

    fn prompt(&self, draws: impl Iterator<Item = u64>) -> Value {
        let pick = |draw: u64, bound: u64| ((draw >> 32) * bound) >> 32;
        match self.settings.prompt_form {
            PromptForm::Ids => draws
                .map(|draw| TOKEN_ID_MIN + pick(draw, TOKEN_ID_END - TOKEN_ID_MIN))
                .collect::<Vec<_>>()
                .into(),
            PromptForm::Words => {
                let count = self.words.len() as u64;
                let word = |draw| {
                    self.words
                        [usize::try_from(pick(draw, count)).expect("below the number of words")]
                };
                draws.map(word).collect::<Vec<_>>().join(" ").into()
            }
        }
    }

    fn body(&self, model: &str, prompt: Value, output_tokens: u32) -> Value {
        let mut body = json!({
            "model": model,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": output_tokens,
        });
        match self.settings.endpoint {
            Endpoint::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
            Endpoint::Completions => body["prompt"] = prompt,
        }
        if self.settings.ignore_eos {
            body["ignore_eos"] = true.into();
            body["min_tokens"] = output_tokens.into();
        }
        if let Some(temperature) = self.settings.temperature {
            body["temperature"] = temperature.into();
        }
        body
    }
}

fn draw(length: Length, random: &mut Random) -> u32 {
    let extra = random.below(u64::from(length.max - length.min) + 1);
    length.min + u32::try_from(extra).expect("below the width of a range of u32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::driver::tests::settings;

    fn body(planned: &Planned) -> Value {
        serde_json::from_slice(&planned.body).unwrap()
    }

    #[test]
    fn requests_repeat_by_index_and_differ_from_each_other() {
        let plan = Plan::new(&settings("http://x"));
        assert_eq!(plan.request(4).body, plan.request(4).body);
        assert_ne!(plan.request(4).body, plan.request(5).body);
        assert_ne!(plan.request(0).body, plan.warmup(0).body);
    }

    #[test]
    fn ids_have_the_asked_length_and_share_only_the_prefix() {
        let mut settings = settings("http://x");
        settings.prompt_form = PromptForm::Ids;
        settings.endpoint = Endpoint::Completions;
        settings.prompt_tokens = Length { min: 20, max: 30 };
        settings.shared_prefix = 8;
        let plan = Plan::new(&settings);
        let first = body(&plan.request(0))["prompt"].as_array().unwrap().clone();
        for index in 1..50 {
            let ids = body(&plan.request(index))["prompt"].as_array().unwrap().clone();
            assert!((20..=30).contains(&ids.len()), "{}", ids.len());
            assert_eq!(ids[..8], first[..8]);
            assert_ne!(ids[8..12], first[8..12]);
            assert!(
                ids.iter().all(|id| (TOKEN_ID_MIN..TOKEN_ID_END).contains(&id.as_u64().unwrap()))
            );
        }
    }

    #[test]
    fn adapters_take_turns_when_distinct_and_none_is_the_base() {
        let mut settings = settings("http://x");
        settings.adapters = ["a", "b", "c"].map(str::to_owned).to_vec();
        settings.mix = Mix::Distinct;
        let plan = Plan::new(&settings);
        let models: Vec<_> = (0..4).map(|index| plan.request(index).model.to_string()).collect();
        assert_eq!(models, ["a", "b", "c", "a"]);
        settings.mix = Mix::Base;
        assert_eq!(&*Plan::new(&settings).request(1).model, "m");
    }

    #[test]
    fn the_body_asks_for_an_exact_length_unless_told_otherwise() {
        let mut settings = settings("http://x");
        settings.output_tokens = Length { min: 9, max: 9 };
        settings.ignore_eos = true;
        let asked = body(&Plan::new(&settings).request(0));
        assert_eq!(
            (&asked["max_tokens"], &asked["min_tokens"], &asked["ignore_eos"]),
            (&json!(9), &json!(9), &json!(true))
        );
        settings.ignore_eos = false;
        let plain = body(&Plan::new(&settings).request(0));
        assert!(plain.get("ignore_eos").is_none() && plain.get("min_tokens").is_none());
    }
}
