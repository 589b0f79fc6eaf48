//! Server-sent events as `OpenAI` servers write them: one `data:` line an event, comments between.

use serde::Deserialize;

/// A line longer than this is no event of a sane server.
const LINE_BYTES_MAX: usize = 4 << 20;
const DONE: &[u8] = b"[DONE]";

/// A line of the stream passed [`LINE_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is longer than {LINE_BYTES_MAX} bytes")]
pub(crate) struct LineTooLong;

/// Cuts a stream of bytes into the data of its events.
#[derive(Debug, Default)]
pub(crate) struct EventSplitter {
    buffer: Vec<u8>,
    /// What of the buffer has been given out.
    consumed: usize,
    /// What of the buffer is known to hold no line's end.
    searched: usize,
}

impl EventSplitter {
    /// Adds what came over the network.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        self.buffer.drain(..self.consumed);
        self.searched -= self.consumed;
        self.consumed = 0;
        if self.buffer.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(LineTooLong);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The data of the next whole `data:` line.
    pub(crate) fn next_data(&mut self) -> Option<&[u8]> {
        loop {
            let Some(length) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n')
            else {
                self.searched = self.buffer.len();
                return None;
            };
            let line = self.consumed..self.searched + length;
            self.consumed = line.end + 1;
            self.searched = self.consumed;
            let Some(data) = self.buffer[line.clone()].strip_prefix(b"data:") else { continue };
            let from = line.end - data.trim_ascii_start().len();
            let to = from + data.trim_ascii().len();
            return Some(&self.buffer[from..to]);
        }
    }
}

/// What the server counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
    #[serde(default)]
    pub(crate) prompt_tokens_details: Option<PromptDetails>,
}

/// Details of [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct PromptDetails {
    #[serde(default)]
    pub(crate) cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct WithUsage {
    usage: Usage,
}

/// What an event means for a measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `[DONE]`.
    Done,
    /// A piece of a completion.
    Chunk {
        /// Whether it carries text.
        has_text: bool,
        /// The counts, in the last chunk.
        usage: Option<Usage>,
    },
    /// The server gives up; its message.
    Failure(String),
    /// No JSON object.
    Malformed,
}

impl Event {
    /// Looks for the few keys that matter, wherever they are. Only a chunk with counts or an error is parsed.
    pub(crate) fn read(data: &[u8]) -> Self {
        if data == DONE {
            return Self::Done;
        }
        if !data.starts_with(b"{") || !data.ends_with(b"}") {
            return Self::Malformed;
        }
        let (mut has_text, mut has_usage) = (false, false);
        for (key, value) in entries(data) {
            match key {
                b"error" if !value.starts_with(b"null") => {
                    return Self::Failure(error_message(data));
                }
                b"content" | b"text" | b"reasoning_content" => {
                    has_text |= value.len() > 1 && value[0] == b'"' && value[1] != b'"';
                }
                b"usage" => has_usage |= value.starts_with(b"{"),
                _ => {}
            }
        }
        if !has_usage {
            return Self::Chunk { has_text, usage: None };
        }
        match serde_json::from_slice::<WithUsage>(data) {
            Ok(chunk) => Self::Chunk { has_text, usage: Some(chunk.usage) },
            Err(_) => Self::Malformed,
        }
    }
}

/// The message of an error body, or as much of the body as one wants to read.
pub(crate) fn error_message(body: &[u8]) -> String {
    const CHARS_MAX: usize = 300;
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let error =
        parsed.as_ref().and_then(|value| value.get("error").or_else(|| value.get("detail")));
    let message =
        error.and_then(|error| error.get("message").unwrap_or(error).as_str().map(str::to_owned));
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    message.chars().take(CHARS_MAX).collect()
}

/// Each key of JSON, at any depth, with the bytes that begin with its value.
///
/// A string ends at the first quotation mark without a backslash before it; it is a key if a colon follows.
fn entries(data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        loop {
            let begin = rest.iter().position(|&byte| byte == b'"')? + 1;
            let mut end = begin;
            loop {
                match rest.get(end)? {
                    b'"' => break,
                    b'\\' => end += 2,
                    _ => end += 1,
                }
            }
            let string = &rest[begin..end];
            rest = &rest[end + 1..];
            if let Some(value) = rest.trim_ascii_start().strip_prefix(b":") {
                return Some((string, value.trim_ascii_start()));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_at_any_border() {
        let stream = b": ping\r\n\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:[DONE]\n\ndata: {";
        for size in 1..stream.len() {
            let mut splitter = EventSplitter::default();
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                splitter.push(piece).unwrap();
                while let Some(data) = splitter.next_data() {
                    events.push(String::from_utf8(data.to_vec()).unwrap());
                }
            }
            assert_eq!(events, [r#"{"a":1}"#, "[DONE]"], "{size}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut splitter = EventSplitter::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..5).map(|_| splitter.push(&piece)).find(Result::is_err);
        assert_eq!(refused, Some(Err(LineTooLong)));
    }

    #[test]
    fn events_mean_what_they_say() {
        let text = |has_text| Event::Chunk { has_text, usage: None };
        let usage = Usage { prompt_tokens: 3, completion_tokens: 5, prompt_tokens_details: None };
        let cached = Some(PromptDetails { cached_tokens: Some(2) });
        let cases = [
            ("[DONE]", Event::Done),
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, text(false)),
            (r#"{"choices": [{"delta": {"content": " a"}}]}"#, text(true)),
            (r#"{"choices":[{"text":"x"}],"usage":null}"#, text(true)),
            (r#"{"choices":[{"delta":{"content":null},"finish_reason":"stop"}]}"#, text(false)),
            (r#"{"choices":[{"delta":{"content":"\"usage\":{ \"error\":1"}}]}"#, text(true)),
            (r#"{"model":"content\\","choices":[{"text":""}],"id":"\\\""}"#, text(false)),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#,
                Event::Chunk { has_text: false, usage: Some(usage) },
            ),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":2}}}"#,
                Event::Chunk {
                    has_text: false,
                    usage: Some(Usage { prompt_tokens_details: cached, ..usage }),
                },
            ),
            (
                r#"{"error":{"message":"no memory","code":500}}"#,
                Event::Failure("no memory".to_owned()),
            ),
            (r#"{"choices":[],"usage":{"prompt_tokens":-3}}"#, Event::Malformed),
            (r#"{"choices":"#, Event::Malformed),
            ("hello", Event::Malformed),
        ];
        for (data, expected) in cases {
            assert_eq!(Event::read(data.as_bytes()), expected, "{data}");
        }
    }
}
