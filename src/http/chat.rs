//! `POST /v1/chat/completions`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use pleach_text::{ChatTemplate, RenderOptions, Tokenizer};

use super::{
    choice::ChoiceDelta,
    error::ApiError,
    generate::{self, Job},
    head::Head,
    json_body::JsonBody,
    scores,
    sse::{self, ChunkWriter, Events},
    state::{AppState, Model, Unit},
    wire::{
        chat::{ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatMessage},
        chat_request::ChatRequest,
        parts::PartCard,
        usage::{Usage, UsageField},
    },
};
use crate::{
    adapter_service::PinnedAdapter,
    feedback::{
        Capture, CompletionBody, KeptPart, KeptSampling, KeptUsage, Record, Recorder, user_digest,
    },
    telemetry::unix_time,
    tenants::{Admission, Caller},
};

const PARAM: &str = "messages";
const ASSISTANT: &str = "assistant";

/// Continues a chat.
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
    let request = ChatRequest::read(&fields)?;
    drop(fields);
    let unit = unit(&request);
    let model = state.resolve(&caller, &request.model, &request.sampling, &unit).await?;
    let mut head = Head::new("chatcmpl-", &state, &model);
    let shows = Shows {
        logprobs: request.logprobs.is_some(),
        token_ids: request.sampling.return_token_ids,
        usage: request.sampling.include_usage,
    };
    let (stream, n) = (request.sampling.stream, request.sampling.n);
    let prompt_logprobs = request.sampling.prompt_logprobs;
    let (sampling, mut logprobs) = (request.sampling.clone(), request.logprobs);
    let record = record(&state, &caller, &request, &head, &model, n_bytes);
    if record.is_some() {
        // Whoever learns from it later needs them.
        logprobs = logprobs.or(Some(0));
    }
    let prompt = render(&state, request, n_bytes).await?;
    let prompt_token_ids = shows.token_ids.then(|| prompt.clone());
    let n_prompt = prompt.len();
    let mut job = Job {
        model,
        prompts: vec![prompt],
        sampling,
        logprobs,
        prompt_logprobs,
        arrived,
        param: PARAM,
    };
    let running = generate::start(&state, &mut job, admission).await?;
    // It may have become another one on the way.
    head.generation = job.model.generation_hex();
    let mut recorder = record.map(|mut record| {
        record.generation = job.model.adapter.as_ref().map(PinnedAdapter::digest);
        record.body.usage.prompt_tokens = n_prompt;
        Recorder::new(Arc::clone(&state.capture), record, n)
    });
    let tokenizer = Arc::clone(&state.base.tokenizer);
    if stream {
        let greeted = vec![false; n];
        let chunks = Chunks { head, shows, tokenizer, prompt_token_ids, greeted, recorder };
        return Ok(sse::respond(running, chunks, Arc::clone(&state.telemetry), shows.usage));
    }
    let (choices, usage) = running.collect().await?;
    if let Some(recorder) = &mut recorder {
        for choice in &choices {
            recorder.add(choice);
        }
    }
    Ok(whole(&head, &tokenizer, shows, choices, usage, prompt_token_ids.as_deref()))
}

/// Who keeps to one side of a trial.
fn unit(request: &ChatRequest) -> Unit<'_> {
    let keep = &request.keep;
    if let Some(episode) = &keep.episode {
        return Unit::Episode(episode);
    }
    if let Some(user) = &keep.user {
        return Unit::User(user);
    }
    let first = request.messages.iter().find(|message| message["role"] == "user");
    Unit::Opening(first.and_then(|message| message["content"].as_str()).unwrap_or_default())
}

/// What is kept of this chat, if anything is.
fn record(
    state: &AppState,
    caller: &Caller,
    request: &ChatRequest,
    head: &Head,
    model: &Model,
    n_bytes: usize,
) -> Option<Record> {
    let keep = &request.keep;
    if !state.capture.wants(caller, keep.store) {
        return None;
    }
    let sampling = &request.sampling;
    let part = |part: &PartCard| KeptPart {
        name: part.name.clone(),
        generation: part.generation.clone(),
        scale: part.scale,
    };
    Some(Record {
        owner: caller.owner.clone(),
        id: head.id.clone(),
        model: model.plain_name().to_owned(),
        generation: model.adapter.as_ref().map(PinnedAdapter::digest),
        episode: keep.episode.clone(),
        user_sha256: keep.user.as_deref().map(|user| user_digest(&caller.owner, user)),
        metadata: keep.metadata.clone(),
        created_ms: i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX),
        keep_days: Capture::keep_days(caller),
        n_bytes,
        body: CompletionBody {
            messages: request.messages.clone(),
            template_variables: request.template_variables.clone(),
            choices: Vec::new(),
            usage: KeptUsage::default(),
            fingerprint: head.fingerprint.clone(),
            parts: head.adapters.iter().flatten().map(part).collect(),
            sampling: KeptSampling {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                frequency_penalty: sampling.frequency_penalty,
                presence_penalty: sampling.presence_penalty,
                seed: sampling.seed,
                max_tokens: sampling.max_tokens,
            },
            redacted: BTreeMap::new(),
        },
    })
}

#[derive(Clone, Copy, Debug)]
struct Shows {
    logprobs: bool,
    token_ids: bool,
    usage: bool,
}

fn whole(
    head: &Head,
    tokenizer: &Tokenizer,
    shows: Shows,
    choices: Vec<ChoiceDelta>,
    usage: Usage,
    prompt_token_ids: Option<&[u32]>,
) -> Response {
    let prompt_logprobs = choices
        .first()
        .and_then(|choice| choice.prompt_scores.as_ref())
        .map(|prompt_scores| scores::prompt(tokenizer, prompt_scores));
    let body = ChatCompletion {
        id: &head.id,
        object: "chat.completion",
        created: head.created,
        model: &head.model,
        choices: choices.into_iter().map(|choice| whole_choice(tokenizer, shows, choice)).collect(),
        usage,
        system_fingerprint: &head.fingerprint,
        pleach_generation: head.generation.as_deref(),
        pleach_adapters: head.adapters.as_deref(),
        prompt_token_ids,
        prompt_logprobs,
    };
    Json(body).into_response()
}

fn chunk<'a>(head: &'a Head, choices: &'a [ChatChunkChoice], usage: UsageField) -> ChatChunk<'a> {
    ChatChunk {
        id: &head.id,
        object: "chat.completion.chunk",
        created: head.created,
        model: &head.model,
        choices,
        usage,
        system_fingerprint: &head.fingerprint,
        pleach_generation: head.generation.as_deref(),
        pleach_adapters: head.adapters.as_deref(),
        prompt_token_ids: None,
    }
}

fn whole_choice(tokenizer: &Tokenizer, shows: Shows, choice: ChoiceDelta) -> ChatChoice {
    let (finish_reason, stop_reason) =
        choice.finish.map_or(("length", None), |finish| (finish.reason, finish.stop_reason));
    ChatChoice {
        index: choice.index,
        message: ChatMessage { role: ASSISTANT, content: choice.text, refusal: None },
        logprobs: shows.logprobs.then(|| scores::chat(tokenizer, &choice.tokens)),
        finish_reason,
        stop_reason,
        token_ids: shows.token_ids.then(|| choice.tokens.iter().map(|event| event.token).collect()),
    }
}

/// Writes the chunks of a streamed chat.
#[derive(Debug)]
struct Chunks {
    head: Head,
    shows: Shows,
    tokenizer: Arc<Tokenizer>,
    /// Taken by the first chunk.
    prompt_token_ids: Option<Vec<u32>>,
    /// Whether a choice's role was sent.
    greeted: Vec<bool>,
    /// Listens, if this chat is to be kept.
    recorder: Option<Recorder>,
}

impl Chunks {
    /// The role goes out together with the first token and not before: clients time the first chunk.
    fn greet(&mut self, index: usize, events: &mut Events) {
        if std::mem::replace(&mut self.greeted[index], true) {
            return;
        }
        let prompt_token_ids = self.prompt_token_ids.take();
        let choice = ChatChunkChoice {
            index,
            delta: ChatDelta { role: Some(ASSISTANT), content: Some(String::new()) },
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        let choices = [choice];
        let mut chunk = chunk(&self.head, &choices, UsageField::of_chunk(self.shows.usage));
        chunk.prompt_token_ids = prompt_token_ids.as_deref();
        events.push(&chunk);
    }
}

impl ChunkWriter for Chunks {
    fn delta(&mut self, delta: ChoiceDelta, events: &mut Events) {
        if let Some(recorder) = &mut self.recorder {
            recorder.add(&delta);
        }
        self.greet(delta.index, events);
        let is_end_only = delta.finish.is_some() && delta.text.is_empty();
        let (finish_reason, stop_reason) =
            delta.finish.map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
        let scored = self.shows.logprobs && !delta.tokens.is_empty();
        let choice = ChatChunkChoice {
            index: delta.index,
            delta: ChatDelta { role: None, content: (!is_end_only).then_some(delta.text) },
            logprobs: scored.then(|| scores::chat(&self.tokenizer, &delta.tokens)),
            finish_reason,
            stop_reason,
            token_ids: self
                .shows
                .token_ids
                .then(|| delta.tokens.iter().map(|event| event.token).collect()),
        };
        events.push(&chunk(&self.head, &[choice], UsageField::of_chunk(self.shows.usage)));
    }

    fn usage(&mut self, usage: Usage, events: &mut Events) {
        events.push(&chunk(&self.head, &[], UsageField::Counts(usage)));
    }
}

/// Renders the messages and tokenizes them; special tokens in the rendered text are special, and nothing is added.
async fn render(
    state: &AppState,
    request: ChatRequest,
    n_bytes: usize,
) -> Result<Vec<u32>, ApiError> {
    let template = match &state.base.chat_template {
        Ok(template) => Arc::clone(template),
        Err(detail) => return Err(ApiError::Template { detail: detail.clone() }),
    };
    let tokenizer = Arc::clone(&state.base.tokenizer);
    state.cpu.run(n_bytes, move || render_now(&template, &tokenizer, request)).await?
}

fn render_now(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    request: ChatRequest,
) -> Result<Vec<u32>, ApiError> {
    let options = RenderOptions {
        add_generation_prompt: request.add_generation_prompt,
        extra: request.template_variables,
        ..RenderOptions::default()
    };
    let text = template
        .render(&request.messages, &options)
        .map_err(|error| ApiError::Template { detail: error.to_string() })?;
    Ok(tokenizer.encode(&text, true))
}
