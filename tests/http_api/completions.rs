//! Shapes of plain completions, whole and streamed.

use serde_json::{Value, json};

use crate::support::{IM_END, says};

#[tokio::test]
async fn a_whole_completion_has_the_shape_of_openai() {
    let reply = says("cd").await.complete(json!({})).await;
    let mut body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    body["id"] = json!("ID");
    body["created"] = json!(0);
    assert_eq!(
        body.to_string(),
        concat!(
            r#"{"id":"ID","object":"text_completion","created":0,"model":"tiny","choices":[{"index":0,"text":"cd","#,
            r#""logprobs":null,"finish_reason":"stop","stop_reason":null}],"#,
            r#""usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5,"#,
            r#""prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"#,
            r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"#,
            r#""accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"#,
            r#""system_fingerprint":"fp_test","pleach_generation":null}"#,
        )
    );
}

#[tokio::test]
async fn prompts_are_strings_tokens_or_lists_of_them() {
    let server = says("z").await;
    for (prompt, n_choices, n_tokens) in [
        (json!("abc"), 1, 3),
        (json!(["a", "bc"]), 2, 3),
        (json!([97, 98, 99]), 1, 3),
        (json!([[97], [98, 99]]), 2, 3),
        (json!("<|im_start|>a"), 1, 2),
    ] {
        let body = server.complete(json!({"prompt": prompt, "echo": true})).await.json();
        assert_eq!(body["choices"].as_array().unwrap().len(), n_choices, "{prompt}");
        assert_eq!(body["usage"]["prompt_tokens"], n_tokens, "{prompt}");
    }
    let body = server
        .complete(json!({"prompt": ["a", "bc"], "n": 2, "best_of": 2, "echo": true}))
        .await
        .json();
    let texts: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(texts, ["az", "az", "bcz", "bcz"]);
}

#[tokio::test]
async fn the_default_is_sixteen_tokens() {
    let body = says(&"x".repeat(40)).await.complete(json!({})).await.json();
    assert_eq!(body["choices"][0]["text"], "x".repeat(16));
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn logprobs_are_parallel_lists_with_offsets() {
    let server = says("éz").await;
    let body = server.complete(json!({"logprobs": 2})).await.json();
    assert_eq!(
        body["choices"][0]["logprobs"],
        json!({
            "tokens": ["bytes:\\xc3", "bytes:\\xa9", "z", "<|im_end|>"],
            "token_logprobs": [-0.25, -0.25, -0.25, -0.25],
            "top_logprobs": [
                {"C": -0.25, "D": -1.25, "bytes:\\xc3": -0.25},
                {")": -0.25, "*": -1.25, "bytes:\\xa9": -0.25},
                {"z": -0.25, "{": -1.25},
                {"\u{1}": -0.25, "\u{2}": -1.25, "<|im_end|>": -0.25},
            ],
            "text_offset": [0, 1, 1, 2],
        })
    );
}

#[tokio::test]
async fn an_echo_shows_and_scores_the_prompt() {
    let server = says("c").await;
    let body = server.complete(json!({"echo": true, "logprobs": 1, "max_tokens": 1})).await.json();
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "abc");
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b", "c"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.25, -0.25]));
    assert_eq!(choice["logprobs"]["top_logprobs"][0], Value::Null);
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
}

#[tokio::test]
async fn no_tokens_may_be_asked_for_to_score_a_prompt() {
    let body = says("c")
        .await
        .complete(json!({"echo": true, "logprobs": 0, "max_tokens": 0}))
        .await
        .json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(choice["logprobs"]["top_logprobs"][1], json!({"b": -0.25}));
    assert_eq!(body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn prompt_logprobs_and_token_ids_are_returned_by_choice() {
    let body = says("c")
        .await
        .complete(json!({"prompt_logprobs": 0, "return_token_ids": true}))
        .await
        .json();
    let choice = &body["choices"][0];
    assert_eq!(
        choice["prompt_logprobs"],
        json!([null, {"98": {"logprob": -0.25, "rank": null, "decoded_token": "b"}}])
    );
    assert_eq!(
        (&choice["token_ids"], &choice["prompt_token_ids"]),
        (&json!([99, IM_END]), &json!([97, 98]))
    );
}

#[tokio::test]
async fn a_stream_echoes_in_its_first_chunk_and_ends_with_usage() {
    let reply = says("cd")
        .await
        .complete(json!({"stream": true, "echo": true, "logprobs": 0, "stream_options": {"include_usage": true}}))
        .await;
    let events = reply.events();
    let texts: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"].get(0))
        .map(|choice| choice["text"].clone())
        .collect();
    assert_eq!(texts, ["abc", "d", ""]);
    assert_eq!(events[0]["choices"][0]["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([3]));
    assert_eq!(events[2]["choices"][0]["finish_reason"], "stop");
    assert!(events[0]["usage"].is_null() && events[0].get("usage").is_some());
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(5)));
    assert!(events.iter().all(|event| event["object"] == "text_completion"));
}
