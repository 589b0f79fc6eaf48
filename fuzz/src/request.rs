//! The body of a request, read by every endpoint that reads one.

use axum::response::IntoResponse as _;
use pleach::http::{
    error::ApiError,
    lora::{LoadRequest, UnloadRequest, VllmError},
    wire::{
        chat_request::{ChatRequest, MESSAGES_MAX},
        completion_request::{CompletionRequest, PROMPTS_MAX},
        fields::Fields,
        fine_tuning::JobRequest,
        graders::RunRequest,
        parts::read_parts,
        tenants::{read_change, read_key},
    },
};
use pleach_adapters::compose::COMPOSED_SCALE_MAX;

/// Some time in 2026, Unix ms.
const NOW_MS: i64 = 1_780_000_000_000;

/// Takes the bytes as a body.
///
/// # Panics
/// When what was taken is out of its bounds, or a refusal is none.
pub fn run(data: &[u8]) -> bool {
    let fields = match Fields::parse(data) {
        Ok(fields) => fields,
        Err(error) => {
            refused(error);
            return false;
        }
    };
    let chat = taken(ChatRequest::read(&fields));
    if let Some(chat) = &chat {
        assert!((1..=MESSAGES_MAX).contains(&chat.messages.len()));
    }
    let completion = taken(CompletionRequest::read(&fields));
    if let Some(completion) = &completion {
        assert!((1..=PROMPTS_MAX).contains(&completion.prompts.len()));
    }
    for part in taken(read_parts(&fields)).iter().flatten() {
        assert!(part.scale.abs() <= COMPOSED_SCALE_MAX, "{part:?}");
    }
    let load = taken_as_vllm(LoadRequest::read(&fields));
    if let Some(load) = &load {
        assert!(!load.name.is_empty() && !load.path.is_empty());
    }
    let unload = taken_as_vllm(UnloadRequest::read(&fields));
    if let Some(unload) = &unload {
        assert!(!unload.name.is_empty());
    }
    let change = taken(read_change(&fields));
    let key = taken(read_key(&fields, NOW_MS));
    if let Some(key) = &key {
        assert!(!key.scopes.is_empty() && key.expires_ms.is_none_or(|expires| expires > NOW_MS));
    }
    let job = taken(JobRequest::read(&fields));
    let graded = taken(RunRequest::read(&fields));
    if let Some(RunRequest { grader, item, sample }) = &graded {
        assert!(grader.grade(item, sample).reward.is_finite());
    }
    chat.is_some()
        || job.is_some()
        || graded.is_some()
        || completion.is_some()
        || load.is_some()
        || unload.is_some()
        || change.is_some()
        || key.is_some()
}

fn taken<T>(read: Result<T, ApiError>) -> Option<T> {
    read.map_err(refused).ok()
}

fn taken_as_vllm<T>(read: Result<T, VllmError>) -> Option<T> {
    read.map_err(|error| assert!(error.into_response().status().is_client_error())).ok()
}

fn refused(error: ApiError) {
    assert!(!error.to_string().is_empty());
    assert!(error.into_response().status().is_client_error());
}
