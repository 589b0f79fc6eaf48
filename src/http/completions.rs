//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use pleach_text::Tokenizer;

use super::{
    choice::ChoiceDelta,
    error::ApiError,
    generate::{self, Job},
    head::Head,
    json_body::JsonBody,
    scores::{self, CompletionScores},
    sse::{self, ChunkWriter, Events},
    state::{AppState, Unit},
    wire::{
        completion::{Completion, CompletionChoice},
        completion_request::{CompletionRequest, Prompt},
        logprobs::CompletionLogprobs,
        usage::{Usage, UsageField},
    },
};
use crate::tenants::{Admission, Caller};

const PARAM: &str = "prompt";

/// Continues prompts.
///
/// # Errors
/// See [`ApiError`].
pub async fn create(
    State(state): State<Arc<AppState>>,
    caller: Caller,
    admission: Admission,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let JsonBody { fields, n_bytes, arrived } = body;
    let request = CompletionRequest::read(&fields)?;
    drop(fields);
    let unit = unit(&request.prompts);
    let unit = Unit::Opening(&unit);
    let model = state.resolve(&caller, &request.model, &request.sampling, &unit).await?;
    let CompletionRequest { prompts, echo, add_special_tokens, logprobs, sampling, .. } = request;
    let prompts = tokenize(&state, prompts, add_special_tokens, n_bytes).await?;
    let mut head = Head::new("cmpl-", &state, &model);
    let view = View {
        tokenizer: Arc::clone(&state.base.tokenizer),
        n: sampling.n,
        echo,
        logprobs: logprobs.is_some(),
        token_ids: sampling.return_token_ids,
        prompt_logprobs: sampling.prompt_logprobs.is_some(),
        skip_special: sampling.skip_special,
        prompts: Arc::new(prompts),
    };
    let echoed_logprobs = if echo { logprobs } else { None };
    let (stream, include_usage) = (sampling.stream, sampling.include_usage);
    let mut job = Job {
        model,
        prompts: view.prompts.iter().map(|prompt| prompt.tokens.clone()).collect(),
        logprobs,
        // One scoring serves both wishes; a list of likeliest tokens that is longer than asked for harms nobody.
        prompt_logprobs: sampling.prompt_logprobs.max(echoed_logprobs),
        sampling,
        arrived,
        param: PARAM,
    };
    let n_choices = job.prompts.len() * view.n;
    let running = generate::start(&state, &mut job, admission).await?;
    // It may have become another one on the way.
    head.generation = job.model.generation_hex();
    if stream {
        let scores = (0..n_choices).map(|_| None).collect();
        let chunks = Chunks { head, view, include_usage, scores };
        return Ok(sse::respond(running, chunks, Arc::clone(&state.telemetry), include_usage));
    }
    let (choices, usage) = running.collect().await?;
    let choices: Vec<_> =
        choices.into_iter().map(|choice| view.choice(&mut None, choice)).collect();
    Ok(Json(completion(&head, &choices, UsageField::Counts(usage))).into_response())
}

/// What keeps to one side of a trial: requests that begin with the same prompt.
fn unit(prompts: &[Prompt]) -> String {
    match prompts.first() {
        Some(Prompt::Text(text)) => text.clone(),
        Some(Prompt::Tokens(tokens)) => format!("{tokens:?}"),
        None => String::new(),
    }
}

fn completion<'a>(
    head: &'a Head,
    choices: &'a [CompletionChoice],
    usage: UsageField,
) -> Completion<'a> {
    Completion {
        id: &head.id,
        object: "text_completion",
        created: head.created,
        model: &head.model,
        choices,
        usage,
        system_fingerprint: &head.fingerprint,
        pleach_generation: head.generation.as_deref(),
        pleach_adapters: head.adapters.as_deref(),
    }
}

/// A prompt in tokens, and the text that an echo shows.
#[derive(Debug)]
struct TokenizedPrompt {
    tokens: Vec<u32>,
    text: String,
}

/// What of a choice shows, and how.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are wishes of the request, each on its own"
)]
struct View {
    tokenizer: Arc<Tokenizer>,
    n: usize,
    echo: bool,
    logprobs: bool,
    token_ids: bool,
    prompt_logprobs: bool,
    skip_special: bool,
    prompts: Arc<Vec<TokenizedPrompt>>,
}

impl View {
    /// A whole choice, or what a chunk adds to it. `progress` is `None` before the first chunk.
    fn choice(
        &self,
        progress: &mut Option<CompletionScores>,
        delta: ChoiceDelta,
    ) -> CompletionChoice {
        let prompt = &self.prompts[delta.index / self.n];
        let is_first = progress.is_none();
        let progress = progress.get_or_insert_with(|| CompletionScores::new(self.skip_special));
        let prompt_scores = delta.prompt_scores.unwrap_or_default();
        let logprobs = self.logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            if is_first && self.echo {
                progress.prompt(&mut logprobs, &self.tokenizer, &prompt.tokens, &prompt_scores);
            }
            progress.tokens(&mut logprobs, &self.tokenizer, &delta.tokens);
            logprobs
        });
        let echoed = if is_first && self.echo { prompt.text.as_str() } else { "" };
        let (finish_reason, stop_reason) =
            delta.finish.map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
        CompletionChoice {
            index: delta.index,
            text: format!("{echoed}{}", delta.text),
            // A chunk that holds no token has no scores to show.
            logprobs: logprobs.filter(|logprobs| is_first || !logprobs.tokens.is_empty()),
            finish_reason,
            stop_reason,
            token_ids: self
                .token_ids
                .then(|| delta.tokens.iter().map(|event| event.token).collect()),
            prompt_token_ids: (self.token_ids && is_first).then(|| prompt.tokens.clone()),
            prompt_logprobs: (self.prompt_logprobs && is_first)
                .then(|| scores::prompt(&self.tokenizer, &prompt_scores)),
        }
    }
}

/// Writes the chunks of streamed completions.
#[derive(Debug)]
struct Chunks {
    head: Head,
    view: View,
    include_usage: bool,
    /// By choice; `None` before its first chunk.
    scores: Vec<Option<CompletionScores>>,
}

impl ChunkWriter for Chunks {
    fn delta(&mut self, delta: ChoiceDelta, events: &mut Events) {
        let index = delta.index;
        let choice = self.view.choice(&mut self.scores[index], delta);
        events.push(&completion(&self.head, &[choice], UsageField::of_chunk(self.include_usage)));
    }

    fn usage(&mut self, usage: Usage, events: &mut Events) {
        events.push(&completion(&self.head, &[], UsageField::Counts(usage)));
    }
}

/// Special tokens in a text are special, as in every other server.
async fn tokenize(
    state: &AppState,
    prompts: Vec<Prompt>,
    add_special_tokens: bool,
    n_bytes: usize,
) -> Result<Vec<TokenizedPrompt>, ApiError> {
    let tokenizer = Arc::clone(&state.base.tokenizer);
    let work = move || {
        prompts
            .into_iter()
            .map(|prompt| tokenize_one(&tokenizer, prompt, add_special_tokens))
            .collect()
    };
    state.cpu.run(n_bytes, work).await
}

fn tokenize_one(
    tokenizer: &Tokenizer,
    prompt: Prompt,
    add_special_tokens: bool,
) -> TokenizedPrompt {
    match prompt {
        Prompt::Tokens(tokens) => {
            TokenizedPrompt { text: tokenizer.decode(&tokens, false), tokens }
        }
        Prompt::Text(text) => {
            let bos = tokenizer.bos_token().filter(|_| add_special_tokens && tokenizer.add_bos());
            let tokens = bos.into_iter().chain(tokenizer.encode(&text, true)).collect();
            TokenizedPrompt { tokens, text }
        }
    }
}
