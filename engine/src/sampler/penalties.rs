//! What changes single logits before the temperature: bias, bans and the three penalties.

use crate::step_batch::SampleRow;

/// The changed logits, or `None` when nothing changes them.
pub(crate) fn adjust(logits: &[f32], row: &SampleRow) -> Option<Vec<f32>> {
    let params = &*row.params;
    if params.logit_bias.is_empty() && row.banned.is_empty() && !params.needs_history() {
        return None;
    }
    let mut values = logits.to_vec();
    for &(token, bias) in &params.logit_bias {
        if let Some(value) = values.get_mut(token as usize) {
            *value += bias;
        }
    }
    for &token in &row.banned {
        if let Some(value) = values.get_mut(token as usize) {
            *value = f32::NEG_INFINITY;
        }
    }
    if params.repetition_penalty != 1.0 {
        repetition(&mut values, &row.history, params.repetition_penalty);
    }
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        let completion = row.history.get(row.n_prompt..).unwrap_or(&[]);
        frequency_and_presence(
            &mut values,
            completion,
            params.frequency_penalty,
            params.presence_penalty,
        );
    }
    Some(values)
}

fn repetition(values: &mut [f32], history: &[u32], penalty: f32) {
    let mut seen = vec![false; values.len()];
    for &token in history {
        let index = token as usize;
        if index >= values.len() || std::mem::replace(&mut seen[index], true) {
            continue;
        }
        let value = &mut values[index];
        *value = if *value > 0.0 { *value / penalty } else { *value * penalty };
    }
}

/// `x[t] -= frequency * count[t] + presence * (count[t] > 0)`, in one step from the count: adding the penalty up token by
/// token would round differently.
fn frequency_and_presence(values: &mut [f32], completion: &[u32], frequency: f32, presence: f32) {
    let mut counts = vec![0u32; values.len()];
    for &token in completion {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    for &token in completion {
        let index = token as usize;
        // Taken, so that a token met again changes nothing.
        let count = counts.get_mut(index).map_or(0, std::mem::take);
        if count > 0 {
            values[index] -= frequency * count as f32;
            values[index] -= presence;
        }
    }
}
