//! Known fields that this server does not implement. Sending one with a value that asks for something is refused by
//! name; a neutral value (`null`, or the one listed) is as good as absent. Fields listed nowhere are ignored.

use serde_json::Value;

use super::fields::Fields;
use crate::http::error::ApiError;

/// Which values of an unsupported field ask for nothing.
enum Neutral {
    /// None but `null`.
    Null,
    /// `false`.
    False,
    /// An empty list or object.
    Empty,
    /// One of these strings.
    Text(&'static [&'static str]),
    /// This number.
    Number(f64),
    /// An object whose `type` is `text`.
    TypeText,
    /// The list `["text"]`.
    ListOfText,
}

impl Neutral {
    fn covers(&self, value: &Value) -> bool {
        match self {
            Self::Null => false,
            Self::False => *value == Value::Bool(false),
            Self::Empty => {
                value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
            }
            Self::Text(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
            Self::Number(number) => {
                value.as_f64().is_some_and(|found| (found - number).abs() < f64::EPSILON)
            }
            Self::TypeText => value.get("type").and_then(Value::as_str) == Some("text"),
            Self::ListOfText => {
                value.as_array().is_some_and(|list| list.iter().all(|item| item == "text"))
            }
        }
    }
}

/// `(field, neutral values, hint)`.
type Row = (&'static str, Neutral, &'static str);

const ADAPTER_HINT: &str = ": put the adapter's name into 'model', or several into 'adapters'";

/// Fields of both endpoints.
const BOTH: &[Row] = &[
    // OpenAI.
    ("response_format", Neutral::TypeText, ""),
    ("service_tier", Neutral::Text(&["auto", "default"]), ""),
    ("moderation", Neutral::Null, ""),
    // Adapters are chosen by name only.
    ("adapter", Neutral::Null, ADAPTER_HINT),
    ("adapter_id", Neutral::Null, ADAPTER_HINT),
    ("lora", Neutral::Empty, ADAPTER_HINT),
    ("lora_path", Neutral::Null, ADAPTER_HINT),
    ("merged_adapters", Neutral::Null, ADAPTER_HINT),
    // vLLM.
    ("structured_outputs", Neutral::Empty, ""),
    ("guided_json", Neutral::Null, ""),
    ("guided_regex", Neutral::Null, ""),
    ("guided_choice", Neutral::Null, ""),
    ("guided_grammar", Neutral::Null, ""),
    ("guided_decoding_backend", Neutral::Null, ""),
    ("guided_whitespace_pattern", Neutral::Null, ""),
    ("use_beam_search", Neutral::False, ""),
    ("length_penalty", Neutral::Number(1.0), ""),
    ("allowed_token_ids", Neutral::Null, ""),
    ("bad_words", Neutral::Empty, ""),
    ("logits_processors", Neutral::Empty, ""),
    ("truncate_prompt_tokens", Neutral::Null, ""),
    ("priority", Neutral::Number(0.0), ""),
    ("kv_transfer_params", Neutral::Null, ""),
    ("vllm_xargs", Neutral::Empty, ""),
    ("return_tokens_as_token_ids", Neutral::False, ": use 'return_token_ids'"),
    // llama.cpp.
    ("grammar", Neutral::Null, ""),
    ("json_schema", Neutral::Null, ""),
];

/// Fields of chat completions.
const CHAT: &[Row] = &[
    // OpenAI.
    ("tools", Neutral::Empty, ""),
    ("tool_choice", Neutral::Text(&["none"]), ""),
    ("functions", Neutral::Empty, ""),
    ("function_call", Neutral::Text(&["none"]), ""),
    ("audio", Neutral::Null, ""),
    ("modalities", Neutral::ListOfText, ""),
    ("prediction", Neutral::Null, ""),
    ("web_search_options", Neutral::Null, ""),
    ("reasoning_effort", Neutral::Text(&["none"]), ""),
    ("verbosity", Neutral::Text(&["medium"]), ""),
    // vLLM.
    ("echo", Neutral::False, ": use /v1/completions"),
    ("add_special_tokens", Neutral::False, ": the template writes them"),
    ("continue_final_message", Neutral::False, ""),
    ("chat_template", Neutral::Null, ": the template is the model's own"),
    ("documents", Neutral::Empty, ""),
    ("mm_processor_kwargs", Neutral::Empty, ""),
    ("best_of", Neutral::Number(1.0), ""),
];

/// Fields of plain completions.
const COMPLETIONS: &[Row] =
    &[("suffix", Neutral::Text(&[""]), ""), ("prompt_embeds", Neutral::Null, "")];

/// Refuses a chat request that asks for what is not there.
///
/// # Errors
/// The first such field.
pub fn refuse_chat(fields: &Fields) -> Result<(), ApiError> {
    refuse(fields, BOTH)?;
    refuse(fields, CHAT)
}

/// Refuses a completion request that asks for what is not there.
///
/// # Errors
/// The first such field.
pub fn refuse_completions(fields: &Fields) -> Result<(), ApiError> {
    refuse(fields, BOTH)?;
    refuse(fields, COMPLETIONS)
}

fn refuse(fields: &Fields, rows: &[Row]) -> Result<(), ApiError> {
    let asking = rows
        .iter()
        .find(|(param, neutral, _)| fields.get(param).is_some_and(|value| !neutral.covers(value)));
    match asking {
        Some((param, _, hint)) => Err(ApiError::Unsupported { param: (*param).to_owned(), hint }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Option<String> {
        match refuse_chat(&Fields::parse(body.as_bytes()).unwrap()) {
            Ok(()) => None,
            Err(ApiError::Unsupported { param, .. }) => Some(param),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn asking_values_are_refused_by_name_and_neutral_ones_are_not() {
        for (body, expected) in [
            (r#"{"tools":[{"type":"function"}]}"#, Some("tools")),
            (r#"{"tools":[]}"#, None),
            (r#"{"tools":null}"#, None),
            (r#"{"tool_choice":"auto"}"#, Some("tool_choice")),
            (r#"{"tool_choice":"none"}"#, None),
            (r#"{"response_format":{"type":"json_object"}}"#, Some("response_format")),
            (r#"{"response_format":{"type":"text"}}"#, None),
            (r#"{"modalities":["text","audio"]}"#, Some("modalities")),
            (r#"{"modalities":["text"]}"#, None),
            (r#"{"length_penalty":1}"#, None),
            (r#"{"length_penalty":1.5}"#, Some("length_penalty")),
            (r#"{"guided_json":{}}"#, Some("guided_json")),
            (r#"{"something_new":1,"user":"u","metadata":{"a":"b"}}"#, None),
        ] {
            assert_eq!(refused(body).as_deref(), expected, "{body}");
        }
    }
}
