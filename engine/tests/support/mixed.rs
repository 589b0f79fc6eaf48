//! Several [`Run`]s in the same steps.

use pleach_engine::{backend::StepRunner, sampler::SampledToken};

use super::{Run, random::Random, step};

/// Most rows in a step of [`score`] and [`greedy`].
const STEP_ROWS: usize = 200;

/// Results of every prompt row of all runs, computed together in chunks of random size.
pub(crate) fn score(
    runner: &mut dyn StepRunner,
    runs: &mut [Run],
    random: &mut Random,
    n_top: u32,
) -> Vec<Vec<SampledToken>> {
    let mut scores: Vec<Vec<SampledToken>> = runs.iter().map(|_| Vec::new()).collect();
    while runs.iter().any(|run| run.done < run.tokens.len()) {
        let (mut chunks, mut n_rows) = (Vec::new(), 0);
        for run in &*runs {
            let n = (run.tokens.len() - run.done).min(STEP_ROWS - n_rows);
            chunks.push(if n > 0 { random.between(1, n) } else { 0 });
            n_rows += chunks[chunks.len() - 1];
        }
        let mut parts: Vec<&mut Run> =
            runs.iter_mut().zip(&chunks).filter(|(_, n)| **n > 0).map(|(run, _)| run).collect();
        let of_parts: Vec<usize> = chunks.iter().copied().filter(|n| *n > 0).collect();
        let mut sampled = step(runner, &mut parts, &of_parts, n_top, true).into_iter();
        for (scores, &n) in scores.iter_mut().zip(&chunks) {
            scores.extend(sampled.by_ref().take(n));
        }
    }
    scores
}

/// The next `n_tokens` greedy tokens of all runs, computed together: prompts first in chunks, then a row of each per step.
pub(crate) fn greedy(
    runner: &mut dyn StepRunner,
    runs: &mut [Run],
    n_tokens: usize,
) -> Vec<Vec<(u32, f32)>> {
    let mut chosen: Vec<Vec<(u32, f32)>> = runs.iter().map(|_| Vec::new()).collect();
    while chosen.iter().any(|chosen| chosen.len() < n_tokens) {
        let chunk = STEP_ROWS / runs.len();
        let wanted = |(run, chosen): (&Run, &Vec<(u32, f32)>)| {
            if chosen.len() < n_tokens { (run.tokens.len() - run.done).min(chunk) } else { 0 }
        };
        let chunks: Vec<usize> = runs.iter().zip(&chosen).map(wanted).collect();
        let mut parts: Vec<&mut Run> =
            runs.iter_mut().zip(&chunks).filter(|(_, n)| **n > 0).map(|(run, _)| run).collect();
        let of_parts: Vec<usize> = chunks.iter().copied().filter(|n| *n > 0).collect();
        let mut sampled = step(runner, &mut parts, &of_parts, 0, false).into_iter();
        for ((run, chosen), n) in runs.iter_mut().zip(&mut chosen).zip(chunks) {
            let Some(sampled) = (n > 0).then(|| sampled.next().unwrap()) else { continue };
            if run.done == run.tokens.len() {
                run.tokens.push(sampled.token);
                chosen.push((sampled.token, sampled.logprob));
            }
        }
    }
    chosen
}
