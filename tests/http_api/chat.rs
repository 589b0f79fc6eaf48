//! Shapes of chat completions, whole and streamed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{BASE, IM_END, Reply, Setup, ids, says, serve};

/// `<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n`
const PROMPT_TOKENS: usize = 1 + 5 + 2 + 1 + 1 + 1 + 10;

/// Replaces what differs from run to run.
fn still(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap();
    let id = value["id"].as_str().unwrap();
    let created = value["created"].as_u64().unwrap();
    assert!(created > 1_600_000_000);
    text.replace(id, "ID").replace(&created.to_string(), "0")
}

#[tokio::test]
async fn a_whole_completion_has_the_shape_of_openai() {
    let reply = says("hello").await.chat(json!({})).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "application/json");
    assert!(reply.json()["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let expected = concat!(
        r#"{"id":"ID","object":"chat.completion","created":0,"model":"tiny","choices":[{"index":0,"#,
        r#""message":{"role":"assistant","content":"hello","refusal":null},"logprobs":null,"#,
        r#""finish_reason":"stop","stop_reason":null}],"#,
        r#""usage":{"prompt_tokens":21,"completion_tokens":6,"total_tokens":27,"#,
        r#""prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"#,
        r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"#,
        r#""accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"#,
        r#""system_fingerprint":"fp_test","pleach_generation":null}"#,
    );
    assert_eq!(PROMPT_TOKENS, 21);
    assert_eq!(still(&reply.text), expected);
}

#[tokio::test]
async fn a_stream_has_the_bytes_of_openai() {
    let reply = says("ok")
        .await
        .chat(json!({"stream": true, "stream_options": {"include_usage": true}}))
        .await;
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    let lines: Vec<String> = reply
        .text
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap())
        .map(|json| if json == "[DONE]" { json.to_owned() } else { still(json) })
        .collect();
    let chunk = |choices: &str, usage: &str| {
        format!(
            r#"{{"id":"ID","object":"chat.completion.chunk","created":0,"model":"tiny","choices":[{choices}],"usage":{usage},"system_fingerprint":"fp_test","pleach_generation":null}}"#
        )
    };
    let usage = concat!(
        r#"{"prompt_tokens":21,"completion_tokens":3,"total_tokens":24,"#,
        r#""prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"#,
        r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"#,
        r#""accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#,
    );
    let expected = [
        chunk(
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#,
            "null",
        ),
        chunk(
            r#"{"index":0,"delta":{"content":"o"},"logprobs":null,"finish_reason":null}"#,
            "null",
        ),
        chunk(
            r#"{"index":0,"delta":{"content":"k"},"logprobs":null,"finish_reason":null}"#,
            "null",
        ),
        chunk(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#, "null"),
        chunk("", usage),
        "[DONE]".to_owned(),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn without_include_usage_chunks_have_no_usage() {
    let events = says("ok").await.chat(json!({"stream": true})).await.events();
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn adapters_are_named_by_alias_or_with_the_base_and_carry_their_generation() {
    let server = says("x").await;
    for (model, digest) in [
        ("pirate", Some("aa".repeat(32))),
        ("tiny:pirate", Some("aa".repeat(32))),
        ("tiny/two:extract", Some("bb".repeat(32))),
        ("tiny/two", None),
        (BASE, None),
    ] {
        let whole = server.chat(json!({"model": model})).await.json();
        assert_eq!(whole["model"], model);
        assert_eq!(whole["pleach_generation"], json!(digest), "{model}");
        let events = server.chat(json!({"model": model, "stream": true})).await.events();
        assert!(events.iter().all(|event| event["pleach_generation"] == json!(digest)), "{model}");
    }
    let slots: std::collections::BTreeSet<_> =
        server.script.lock().unwrap().adapters.iter().map(|slot| slot.map(|slot| slot.0)).collect();
    assert_eq!(slots, [None, Some(1), Some(2)].into());
}

#[tokio::test]
async fn a_stop_string_is_found_across_token_borders() {
    let server = says("one two STOP three").await;
    let whole = server.chat(json!({"stop": ["never", "STOP"]})).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "one two ");
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!("STOP"))
    );
    assert_eq!(whole["usage"]["completion_tokens"], "one two STOP".len());

    let kept =
        server.chat(json!({"stop": "STOP", "include_stop_str_in_output": true})).await.json();
    assert_eq!(kept["choices"][0]["message"]["content"], "one two STOP");

    let events = server.chat(json!({"stop": "STOP", "stream": true})).await.events();
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "one two ");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    server.idle().await;
}

#[tokio::test]
async fn text_that_only_looks_like_a_stop_string_comes_out() {
    let whole = says("a STO").await.chat(json!({"stop": "STOP"})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "a STO");
    assert_eq!(whole["choices"][0]["stop_reason"], Value::Null);
}

#[tokio::test]
async fn stop_token_ids_end_a_choice_and_say_so() {
    let whole = says("abc").await.chat(json!({"stop_token_ids": [98]})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "a");
    assert_eq!(whole["choices"][0]["stop_reason"], 98);
    assert_eq!(whole["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn max_tokens_ends_with_length() {
    let server = says("hello").await;
    for field in ["max_tokens", "max_completion_tokens"] {
        let whole = server.chat(json!({field: 2})).await.json();
        assert_eq!(whole["choices"][0]["message"]["content"], "he");
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
    }
    let whole = server.chat(json!({"max_tokens": 1_000_000, "ignore_eos": true})).await.json();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["total_tokens"], crate::support::CONTEXT);
}

#[tokio::test]
async fn min_tokens_bans_end_tokens_and_hides_stop_strings() {
    let whole = says("hi").await.chat(json!({"min_tokens": 5, "max_tokens": 8})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "hi...");
    let whole = says("hihi").await.chat(json!({"min_tokens": 2, "stop": "i"})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "hih");
    // One that ends later may begin there.
    let whole = says("hi, STOP").await.chat(json!({"min_tokens": 6, "stop": "STOP"})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "hi, ");
    assert_eq!(whole["choices"][0]["stop_reason"], "STOP");
}

/// Time stands still while anything is to be done, and jumps to the next timer while the engine's thread is in a step.
#[tokio::test]
async fn a_silent_stream_is_kept_alive_and_goes_on() {
    let server = says("hi").await;
    server.script.lock().unwrap().step = Duration::from_millis(300);
    let stream = server.begin_chat(json!({"stream": true, "max_tokens": 2})).await;
    // Not earlier: the database answers from another thread, within a time.
    tokio::time::pause();
    let mut reply = Reply::read(stream).await;
    assert!(reply.text.contains(": waiting\n\n"), "{:?}", reply.text);
    reply.text = reply.text.replace(": waiting\n\n", "");
    let events = reply.events();
    let said = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(said.collect::<String>(), "hi");
}

#[tokio::test]
async fn ignore_eos_goes_on_and_special_tokens_stay_out_of_the_text() {
    let server =
        serve(Setup { tokens: [ids("a"), vec![IM_END], ids("b")].concat(), ..Setup::default() })
            .await;
    let whole = server.chat(json!({"ignore_eos": true, "max_tokens": 3})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "ab");
    let whole = server
        .chat(json!({"ignore_eos": true, "max_tokens": 3, "skip_special_tokens": false}))
        .await
        .json();
    assert_eq!(whole["choices"][0]["message"]["content"], "a<|im_end|>b");
    let events =
        server.chat(json!({"ignore_eos": true, "max_tokens": 3, "stream": true})).await.events();
    // Role, one chunk for each token, end.
    assert_eq!(events.len(), 5);
}

#[tokio::test]
async fn n_choices_share_a_prompt_and_interleave() {
    let server = says("abcdef").await;
    let whole = server.chat(json!({"n": 3})).await.json();
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(
        choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "abcdef"));
    assert_eq!(whole["usage"]["prompt_tokens"], PROMPT_TOKENS);
    assert_eq!(whole["usage"]["completion_tokens"], 3 * 7);

    let events = server.chat(json!({"n": 2, "stream": true})).await.events();
    for index in [0, 1] {
        let of_choice: Vec<_> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(of_choice[0]["delta"]["role"], "assistant");
        let text: String =
            of_choice.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, "abcdef");
        assert_eq!(of_choice.last().unwrap()["finish_reason"], "stop");
        assert_eq!(of_choice.iter().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
    }
}

#[tokio::test]
async fn logprobs_have_tokens_bytes_and_the_likeliest() {
    // The second character's two bytes come in two tokens.
    let server = serve(Setup { tokens: ids("aé"), ..Setup::default() }).await;
    let whole = server.chat(json!({"logprobs": true, "top_logprobs": 2})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "aé");
    let content = &whole["choices"][0]["logprobs"]["content"];
    assert_eq!(whole["choices"][0]["logprobs"]["refusal"], Value::Null);
    assert_eq!(
        content[0],
        json!({"token": "a", "logprob": -0.25, "bytes": [97], "top_logprobs": [
            {"token": "a", "logprob": -0.25, "bytes": [97]},
            {"token": "b", "logprob": -1.25, "bytes": [98]},
        ]})
    );
    assert_eq!((&content[1]["token"], &content[1]["bytes"]), (&json!("\\xc3"), &json!([0xc3])));
    assert_eq!(content[2]["bytes"], json!([0xa9]));
    // One entry for each token that is counted, the end token too.
    assert_eq!(content.as_array().unwrap().len(), 4);
    assert_eq!(whole["usage"]["completion_tokens"], 4);
    assert_eq!(content[3]["token"], "<|im_end|>");

    let events = server.chat(json!({"logprobs": true, "stream": true})).await.events();
    let streamed: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|entry| entry["token"].clone())
        .collect();
    assert_eq!(streamed, [json!("a"), json!("\\xc3"), json!("\\xa9"), json!("<|im_end|>")]);
    assert!(
        events[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn token_ids_are_returned_when_asked_for() {
    let server = says("ab").await;
    let whole = server.chat(json!({"return_token_ids": true})).await.json();
    assert_eq!(whole["choices"][0]["token_ids"], json!([97, 98, IM_END]));
    assert_eq!(whole["prompt_token_ids"].as_array().unwrap().len(), PROMPT_TOKENS);
    let events = server.chat(json!({"return_token_ids": true, "stream": true})).await.events();
    assert_eq!(events[0]["prompt_token_ids"], whole["prompt_token_ids"]);
    let streamed: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["token_ids"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(json!(streamed), json!([97, 98, IM_END]));
    assert!(server.chat(json!({})).await.json().get("prompt_token_ids").is_none());
}

#[tokio::test]
async fn prompt_logprobs_have_one_entry_per_prompt_token() {
    let whole = says("x").await.chat(json!({"prompt_logprobs": 1})).await.json();
    let scores = whole["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), PROMPT_TOKENS);
    assert_eq!(scores[0], Value::Null);
    assert_eq!(scores[1], json!({"117": {"logprob": -0.25, "rank": 1, "decoded_token": "u"}}));
}

#[tokio::test]
async fn sampling_fields_reach_the_engine() {
    let server = says("x").await;
    let reply = server
        .chat(json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5,
            "frequency_penalty": -1.0, "presence_penalty": 2, "seed": 42, "logit_bias": {"97": -100, "98": 3.5},
        }))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = server.seen();
    assert_eq!((seen.temperature, seen.top_p, seen.top_k, seen.min_p), (0.5, 0.9, 7, 0.1));
    assert_eq!(
        (seen.repetition_penalty, seen.frequency_penalty, seen.presence_penalty),
        (1.5, -1.0, 2.0)
    );
    assert_eq!((seen.seed, seen.logprobs), (42, None));
    assert_eq!(seen.logit_bias, [(97, -100.0), (98, 3.5)]);

    server.chat(json!({"top_k": -1, "top_p": 0, "seed": -1})).await;
    assert_eq!((server.seen().top_k, server.seen().seed), (0, u64::MAX));
    assert!(server.seen().top_p > 0.0);
    server.chat(json!({})).await;
    let first = server.seen().seed;
    server.chat(json!({})).await;
    assert_ne!(server.seen().seed, first, "absent seeds are random");
}

#[tokio::test]
async fn a_second_request_finds_the_prefix_in_the_cache() {
    let server = says("x").await;
    let chat = || server.chat(json!({"messages": [{"role": "user", "content": "a".repeat(64)}]}));
    assert_eq!(chat().await.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(
        chat().await.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
            >= 64
    );
    let salted = server
        .chat(json!({"cache_salt": "mine", "messages": [{"role": "user", "content": "a".repeat(64)}]}))
        .await
        .json();
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn messages_take_roles_and_parts() {
    let server = says("x").await;
    let reply = server
        .chat(json!({"return_token_ids": true, "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "name": "n"},
        ]}))
        .await
        .json();
    let prompt: Vec<u32> = serde_json::from_value(reply["prompt_token_ids"].clone()).unwrap();
    let text = server.state.base.tokenizer.decode(&prompt, false);
    assert_eq!(
        text,
        "<|im_start|>system\nd<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}
