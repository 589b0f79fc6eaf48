//! Training by rewards: answers of the model as it is now, what they are worth, and what is learned from that.
//!
//! Answers are sampled with the weights that the next step begins with, so a state that was kept between two steps is all
//! that another process needs to come to the same answers.

use std::{sync::Arc, time::Instant};

use pleach_store::{JobReport, JobSignal};
use pleach_trainer::{
    Sample,
    grader::Grader,
    objective::advantages,
    recipe::{Exploration, Measured, Prepared, Prompt},
};

use super::Session;
use crate::training::{
    run::{Run, RunError},
    sampling::{Answer, Ask, Sampler, seed_of},
};

/// Added to a training's seed for what is only measured on.
const EVALUATION_SEED: u64 = 1 << 63;
/// Steps without anything to learn before that is told.
const FLAT_STEPS: u32 = 5;

/// What the answers of a step were worth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::training) struct Rewards {
    /// Of all answers.
    pub(in crate::training) mean: f64,
    /// Standard deviation of all.
    pub(in crate::training) deviation: f64,
    /// Share of the prompts to which all answers were worth the same: they teach nothing.
    pub(in crate::training) flat_share: f64,
    /// Share of the answers that were cut off.
    pub(in crate::training) cut_share: f64,
    /// Share of the answers that the grader could not read, which are worth nothing.
    pub(in crate::training) unread_share: f64,
    /// Mean length of an answer, tokens.
    pub(in crate::training) completion_tokens: f64,
}

/// What a step learns from.
#[derive(Debug)]
pub(in crate::training) struct Explored {
    pub(in crate::training) samples: Vec<Sample>,
    pub(in crate::training) rewards: Rewards,
}

/// The grader of a job that has one, and that every row has what it reads.
pub(in crate::training) fn grader_of(
    run: &Run,
    prepared: &Prepared,
) -> Result<Option<Arc<Grader>>, RunError> {
    let Some(grader) = &run.spec.grader else { return Ok(None) };
    let grader = Grader::read(grader, "grader")
        .map_err(|error| RunError::job("invalid_grader", error.to_string(), Some("method")))?;
    let (train, validation) = prepared.prompts();
    let longest = run.server().engine.max_prompt_tokens();
    for (prompts, file) in [(train, "training_file"), (validation, "validation_file")] {
        for Prompt { line, tokens, item } in prompts {
            let problem = if let Some(name) = grader.missing_from(item) {
                format!("line {line}: the grader reads {name}, which the row has not")
            } else if tokens.len() > longest {
                let n = tokens.len();
                format!("line {line}: {n} tokens leave no room for an answer, {longest} do")
            } else {
                continue;
            };
            return Err(RunError::job(&format!("invalid_{file}"), problem, Some(file)));
        }
    }
    Ok(Some(Arc::new(grader)))
}

impl Session<'_> {
    /// Answers to the prompts of a step, as something to learn from.
    pub(in crate::training) fn explore(
        &mut self,
        prompts: &[&Prompt],
        how: Exploration,
    ) -> Result<Explored, RunError> {
        let seed = self.run.spec.seed;
        let Some(answers) = self.sample(prompts, how.group_size, how, seed, false)? else {
            // Between two steps: what is kept now is what comes next.
            let state = Some(self.save()?);
            self.run.report(&JobReport { state, ..self.progress() })?;
            return Err(RunError::Interrupted);
        };
        let (rewards, n_unread) = self.grade(prompts, &answers, how.group_size);
        let group = how.group_size as usize;
        let groups = prompts.iter().zip(answers.chunks(group)).zip(rewards.chunks(group));
        let mut samples = Vec::with_capacity(answers.len());
        let mut n_flat = 0;
        for ((prompt, answers), rewards) in groups {
            let advantages = advantages(rewards);
            n_flat += usize::from(advantages.iter().all(|advantage| *advantage == 0.0));
            let of_group = answers.iter().zip(advantages);
            samples.extend(of_group.map(|(answer, of)| answer.sample(&prompt.tokens, of)));
        }
        let n = answers.len().max(1) as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let count = |is: fn(&Answer) -> bool| answers.iter().filter(|answer| is(answer)).count();
        let rewards = Rewards {
            mean,
            deviation: (rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / n)
                .sqrt(),
            flat_share: n_flat as f64 / prompts.len().max(1) as f64,
            cut_share: count(|answer| answer.is_cut) as f64 / n,
            unread_share: n_unread as f64 / n,
            completion_tokens: answers.iter().map(|answer| answer.tokens.len()).sum::<usize>()
                as f64
                / n,
        };
        self.flat_steps = if n_flat == prompts.len() { self.flat_steps + 1 } else { 0 };
        if self.flat_steps == FLAT_STEPS {
            self.warn(format!(
                "For {FLAT_STEPS} steps all answers to each prompt were worth the same: there was nothing to learn"
            ));
        }
        Ok(Explored { samples, rewards })
    }

    /// The mean reward of validation prompts; `None` without any.
    pub(in crate::training) fn evaluate(
        &mut self,
        prompts: &[Prompt],
        how: Exploration,
    ) -> Result<Option<Measured>, RunError> {
        if prompts.is_empty() {
            return Ok(None);
        }
        let prompts: Vec<&Prompt> = prompts.iter().collect();
        let seed = self.run.spec.seed.wrapping_add(EVALUATION_SEED);
        let answers = self.sample(&prompts, how.eval_samples, how, seed, true)?;
        // The step before is not noted yet: there is nothing to keep that could be gone on from.
        let answers = answers.ok_or(RunError::Interrupted)?;
        let (rewards, _) = self.grade(&prompts, &answers, how.eval_samples);
        let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
        Ok(Some(Measured::of_reward(mean)))
    }

    /// What answers, `n_each` to every prompt, are worth, and how many the grader could not read.
    fn grade(&self, prompts: &[&Prompt], answers: &[Answer], n_each: u32) -> (Vec<f64>, usize) {
        let Some(grader) = &self.grader else { return (vec![0.0; answers.len()], 0) };
        let mut n_unread = 0;
        let groups = prompts.iter().zip(answers.chunks(n_each as usize));
        let said = groups.flat_map(|(prompt, answers)| {
            answers.iter().map(|answer| grader.grade(&prompt.item, &answer.text))
        });
        let rewards = said.map(|said| {
            n_unread += usize::from(said.is_unparsed || said.is_not_finite);
            said.reward
        });
        (rewards.collect(), n_unread)
    }

    /// `n_each` answers to every prompt; `None` when somebody wants the training to stop, or, unless it `may_not_rest`, to
    /// rest.
    fn sample(
        &mut self,
        prompts: &[&Prompt],
        n_each: u32,
        how: Exploration,
        seed: u64,
        may_not_rest: bool,
    ) -> Result<Option<Vec<Answer>>, RunError> {
        let step = self.place.steps;
        let asks = prompts.iter().enumerate().flat_map(|(index, prompt)| {
            let prompt = &prompt.tokens;
            (0..n_each).map(move |n| Ask { prompt, seed: seed_of(seed, step, index, n) })
        });
        let asks: Vec<Ask<'_>> = asks.collect();
        let (run, trainer) = (self.run, self.trainer);
        let weights = Arc::clone(self.learner.adapter());
        let must_pause = &mut self.must_pause;
        let sampled = run.block_on(async {
            let leased = run.server().adapters.lease_weights(&run.job.id, weights).await;
            let in_use = leased.map_err(|error| {
                if run.is_stopping() {
                    return RunError::Interrupted;
                }
                let message =
                    format!("the model in training cannot be brought to the device: {error}");
                RunError::job("adapter_refused", message, None)
            })?;
            let sampler = Sampler {
                engine: trainer.engine.clone(),
                tokenizer: trainer.tokenizer(),
                in_use,
                max_tokens: how.max_completion_tokens as usize,
            };
            let must_stop = async || {
                let signal = run.heard().await?;
                *must_pause |= signal == JobSignal::Pause;
                let stops = signal == JobSignal::Stop || run.is_stopping();
                Ok(stops || *must_pause && !may_not_rest)
            };
            sampler.answers(&asks, must_stop).await
        });
        self.told = Instant::now();
        sampled
    }
}
