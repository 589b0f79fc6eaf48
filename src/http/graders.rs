//! `/v1/fine_tuning/alpha/graders`: trying graders out before a training goes by them.

use std::{sync::Arc, time::Instant};

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    error::ApiError,
    json_body::JsonBody,
    state::AppState,
    wire::graders::{RunCard, RunRequest, read_grader},
};

/// Grading compares texts in a time that goes with the square of their lengths: so it counts as so many times its text.
const WORK_FACTOR: usize = 16;

/// Whether a grader can be used; it is given back.
///
/// # Errors
/// The first field that cannot be used.
pub async fn validate(body: JsonBody) -> Result<Json<Value>, ApiError> {
    body.fields.only(&["grader"])?;
    let grader = body.fields.require("grader")?;
    read_grader(grader, "grader")?;
    Ok(Json(json!({ "grader": grader })))
}

/// What a grader says of an answer.
///
/// # Errors
/// The first field that cannot be used; [`ApiError::Busy`].
pub async fn run(
    State(state): State<Arc<AppState>>,
    body: JsonBody,
) -> Result<Json<RunCard>, ApiError> {
    let RunRequest { grader, item, sample } = RunRequest::read(&body.fields)?;
    let graded = move || {
        let begun = Instant::now();
        let graded = grader.grade(&item, &sample);
        RunCard::new(&grader, &graded, begun.elapsed())
    };
    let card = state.cpu.run(body.n_bytes.saturating_mul(WORK_FACTOR), graded).await?;
    Ok(Json(card))
}
