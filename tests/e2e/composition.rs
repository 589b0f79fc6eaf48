//! Both reference adapters at once on the real model: the sum on the fly answers as the one that `pleach merge` makes of
//! the same parts, and in a batch with other requests it has the bits that it has alone.

use std::path::Path;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    program::program,
    server::{BASE, Reply, Server, chat_body, reference_adapter},
};

/// Name and scale of each part.
const PARTS: [(&str, f32); 2] = [("pirate", 0.75), ("extract", 0.5)];
const MERGED: &str = "merged";
const MAX_TOKENS: u32 = 24;
const PROMPTS: [&str; 4] = [
    "How do I bake bread?",
    "Ann ordered three lamps on Monday and two chairs on Friday.",
    "Name the largest city of Japan.",
    "Tell me a short story about an old ship.",
];

/// `--adapter merged=DIR` of what `pleach merge` makes of the parts, exactly.
fn merge(to: &Path) -> [String; 2] {
    let folder = to.join(MERGED).display().to_string();
    let mut command = program();
    command.args(["merge", "--method", "cat", "--quiet", "--out", &folder]);
    for (name, scale) in PARTS {
        let [flag, named] = reference_adapter(name);
        let part = named.strip_prefix(&format!("{name}=")).unwrap();
        command.args([flag, format!("{part}={scale}")]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["--adapter".to_owned(), format!("{MERGED}={folder}")]
}

fn with_bits(mut body: Value) -> Value {
    body["ignore_eos"] = json!(true);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    body["return_token_ids"] = json!(true);
    body
}

fn alone(model: &str, prompt: &str) -> Value {
    with_bits(chat_body(model, prompt, MAX_TOKENS))
}

fn sum(parts: &[(&str, f32)], prompt: &str) -> Value {
    let parts = parts.iter().map(|(name, scale)| json!({"name": name, "scale": scale}));
    let mut body = alone(BASE, prompt);
    body["adapters"] = parts.collect();
    body
}

fn choice(reply: Reply) -> Value {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let mut body = reply.body;
    assert_eq!(body["usage"]["completion_tokens"], MAX_TOKENS, "{body}");
    body["choices"][0].take()
}

fn start(more: &[String]) -> Server {
    let mut arguments = more.to_vec();
    for (name, _) in PARTS {
        arguments.extend(reference_adapter(name));
    }
    Server::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// In f32: with int8 activations adapters are held as f16, and the merged one, into which the scales are multiplied, is
/// rounded to other values than its parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sum_on_the_fly_answers_as_a_merged_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let f32s = ["--activations", "f32"].map(str::to_owned);
    let server = start(&[&merge(folder.path())[..], &f32s].concat());

    let mut n_apart = 0;
    for prompt in PROMPTS {
        let tokens = async |body: Value| choice(server.chat(&body).await)["token_ids"].to_string();
        let composed = tokens(sum(&PARTS, prompt)).await;
        assert_eq!(composed, tokens(alone(MERGED, prompt)).await, "{prompt}");
        let mut others = vec![tokens(alone(BASE, prompt)).await];
        for (name, _) in PARTS {
            others.push(tokens(alone(name, prompt)).await);
        }
        n_apart += usize::from(!others.contains(&composed));
    }
    assert!(n_apart >= 2, "a sum that answers as one of its parts, or the base, would say nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sum_has_the_bits_among_others_that_it_has_alone() {
    let server = start(&[]);
    let mut bodies = Vec::new();
    for (place, prompt) in PROMPTS.into_iter().enumerate() {
        bodies.push(sum(&PARTS, prompt));
        // Another sum of the same adapters, in the other order.
        bodies.push(sum(&[("extract", 1.0), ("pirate", -0.25)], prompt));
        bodies.push(alone([BASE, "pirate", "extract", "pirate"][place], prompt));
    }
    let mut expected = Vec::new();
    for body in &bodies {
        expected.push(choice(server.chat(body).await).to_string());
    }
    let n_steps = server.metric("pleach_steps_total").await;
    let n_tokens = expected.len() as f64 * f64::from(MAX_TOKENS);
    let mut requests = JoinSet::new();
    for (place, body) in bodies.into_iter().enumerate() {
        let request = server.http.post(format!("{}/v1/chat/completions", server.url)).json(&body);
        requests.spawn(async move {
            let mut answer: Value = request.send().await.unwrap().json().await.unwrap();
            (place, answer["choices"][0].take().to_string())
        });
    }
    for (place, answer) in requests.join_all().await {
        // As text, so that every digit of every log-probability counts.
        assert_eq!(answer, expected[place], "request {place}");
    }
    let n_steps = server.metric("pleach_steps_total").await - n_steps;
    assert!(n_steps < n_tokens / 2.0, "{n_steps} steps for {n_tokens} tokens: they shared none");
}
