//! A chat template, a zero byte, and what is rendered with it: `{"messages": […], "tools": […], "extra": {…}}`.

use std::time::{Duration, UNIX_EPOCH};

use pleach_text::{ChatTemplate, RenderOptions};
use serde_json::Value;

use super::halves;

/// Takes the bytes as a template and a chat.
///
/// # Panics
/// When the same chat is rendered in two ways, or an error says nothing.
pub fn run(data: &[u8]) -> bool {
    let Some((source, chat)) = halves(data) else { return false };
    let (Ok(source), Ok(chat)) = (std::str::from_utf8(source), serde_json::from_slice(chat)) else {
        return false;
    };
    let chat: Value = chat;
    let template = match ChatTemplate::new(source, Some("<s>"), Some("</s>")) {
        Ok(template) => template,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let messages = chat["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: chat.get("tools").cloned(),
        extra: chat["extra"].as_object().cloned().unwrap_or_default(),
        now: Some(UNIX_EPOCH + Duration::from_hours(500_000)),
    };
    match template.render(messages, &options) {
        Ok(text) => {
            assert_eq!(template.render(messages, &options).ok(), Some(text));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
