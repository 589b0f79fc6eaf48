//! What was said, and the next answer, streamed to the terminal.
#![expect(clippy::print_stdout, reason = "the conversation goes to standard output")]
#![expect(
    clippy::print_stderr,
    reason = "what is not part of the conversation goes to standard error"
)]

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::server::{ensure_served, http_client, list_models};
use crate::bench::sse::{EventSplitter, error_message};

/// As much of an error's body as is read.
const ERROR_BODY_BYTES_MAX: usize = 1 << 14;

#[derive(Clone, Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

/// How answers are sampled; what is absent is up to the server.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Sampling {
    /// Sampling temperature.
    #[arg(long)]
    temperature: Option<f64>,
    /// Nucleus sampling.
    #[arg(long)]
    top_p: Option<f64>,
    /// The same answer each time, where the server can.
    #[arg(long)]
    seed: Option<u64>,
    /// Longest answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
}

/// A conversation with one model of a server at a time.
#[derive(Debug)]
pub(super) struct Conversation {
    client: reqwest::Client,
    url: String,
    api_key: Option<String>,
    model: String,
    system: Option<String>,
    sampling: Sampling,
    messages: Vec<Message>,
}

impl Conversation {
    /// An empty one.
    pub(super) fn new(
        url: String,
        api_key: Option<String>,
        model: String,
        system: Option<String>,
        sampling: Sampling,
    ) -> anyhow::Result<Self> {
        let client = http_client(&url)?;
        let mut new = Self { client, url, api_key, model, system, sampling, messages: Vec::new() };
        new.reset();
        Ok(new)
    }

    /// Forgets all but the system prompt.
    pub(super) fn reset(&mut self) {
        let message = |text: &String| Message { role: "system", content: text.clone() };
        self.messages = self.system.iter().map(message).collect();
    }

    /// Sets the system prompt, none if empty, and begins anew.
    pub(super) fn set_system(&mut self, text: &str) {
        self.system = (!text.is_empty()).then(|| text.to_owned());
        self.reset();
    }

    /// Talks to another model from now on, or lists those that there are.
    pub(super) async fn switch(&mut self, name: Option<&str>) -> anyhow::Result<()> {
        let models = list_models(&self.url, self.api_key.as_deref()).await?;
        if let Some(name) = name {
            ensure_served(&models, name)?;
            name.clone_into(&mut self.model);
            eprintln!("now talking to {name}");
            return Ok(());
        }
        for card in models {
            let mark = if card.id == self.model { '*' } else { ' ' };
            let kind = card.parent.map_or(String::new(), |base| format!("  (adapter of {base})"));
            eprintln!("{mark} {}{kind}", card.id);
        }
        Ok(())
    }

    /// One turn. An answer that is stopped or breaks half-way is kept as far as it came; without any of it, the turn
    /// never happened.
    pub(super) async fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(Message { role: "user", content: text.to_owned() });
        let mut answer = String::new();
        let outcome = tokio::select! {
            outcome = self.stream_answer(&mut answer) => outcome,
            Ok(()) = tokio::signal::ctrl_c() => {
                println!(" …");
                Ok(())
            }
        };
        if answer.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Message { role: "assistant", content: answer });
        }
        outcome
    }

    async fn stream_answer(&self, answer: &mut String) -> anyhow::Result<()> {
        let address = format!("{}/v1/chat/completions", self.url);
        let mut request = self.client.post(&address).json(&self.body());
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let begun = Instant::now();
        let mut response =
            request.send().await.with_context(|| format!("nothing answers at {}", self.url))?;
        let status = response.status();
        if !status.is_success() {
            let mut body = Vec::new();
            while let Ok(Some(chunk)) = response.chunk().await {
                body.extend_from_slice(&chunk);
                if body.len() > ERROR_BODY_BYTES_MAX {
                    break;
                }
            }
            bail!("the server answered {status}: {}", error_message(&body));
        }
        let mut splitter = EventSplitter::default();
        let mut first = None;
        while let Some(bytes) = response.chunk().await.context("the connection broke")? {
            splitter.push(&bytes)?;
            while let Some(data) = splitter.next_data() {
                if data == b"[DONE]" {
                    println!();
                    return Ok(());
                }
                let chunk: Chunk = serde_json::from_slice(data)
                    .context("the server sent no chunk of an answer")?;
                if chunk.error.is_some() {
                    println!();
                    bail!("the server gave up: {}", error_message(data));
                }
                for choice in chunk.choices {
                    if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                        first.get_or_insert_with(Instant::now);
                        print!("{}", printable(&text));
                        io::stdout().flush()?;
                        answer.push_str(&text);
                    }
                    if choice.finish_reason.as_deref() == Some("length")
                        && io::stderr().is_terminal()
                    {
                        eprint!(" [cut at the token limit]");
                    }
                }
                if let (Some(usage), Some(first)) = (chunk.usage, first)
                    && io::stderr().is_terminal()
                {
                    print_speed(usage.completion_tokens, first - begun, first.elapsed());
                }
            }
        }
        bail!("the answer ended early")
    }

    fn body(&self) -> serde_json::Value {
        let mut body = json!({
            "model": self.model,
            "messages": self.messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let options = [
            ("temperature", self.sampling.temperature.map(Into::into)),
            ("top_p", self.sampling.top_p.map(Into::into)),
            ("seed", self.sampling.seed.map(Into::into)),
            ("max_tokens", self.sampling.max_tokens.map(Into::into)),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<ChunkUsage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChunkUsage {
    completion_tokens: u64,
}

/// Without control characters, by which a model could write to the terminal what a person doesn't see.
fn printable(text: &str) -> String {
    text.chars().filter(|&letter| !letter.is_control() || matches!(letter, '\n' | '\t')).collect()
}

fn print_speed(tokens: u64, to_first: Duration, after_first: Duration) {
    let speed = tokens.saturating_sub(1) as f64 / after_first.as_secs_f64().max(1e-9);
    eprint!(
        "\n[{tokens} tokens, first after {:.0} ms, then {speed:.0} tokens/s]",
        to_first.as_secs_f64() * 1e3
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_stay_off_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n\tc\u{7}"), "a[2Jb\n\tc");
    }
}
