//! Every refusal: its status, type, param and code; and that the server answers afterwards.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use crate::support::{CONTEXT, Server, Setup, post, says, serve};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Sends a chat with `extra` fields; checks status, param and code, and that a good chat works afterwards.
async fn refuses(server: &Server, extra: Value, param: Option<&str>, code: &str) {
    check(server, &server.chat(extra.clone()).await.json(), &extra, param, code).await;
}

async fn check(server: &Server, body: &Value, sent: &Value, param: Option<&str>, code: &str) {
    let error = &body["error"];
    assert_eq!(
        (&error["param"], &error["code"]),
        (&json!(param), &json!(code)),
        "{sent} got {body}"
    );
    assert_eq!(error["type"], "invalid_request_error");
    let message = error["message"].as_str().unwrap();
    assert!(
        param.is_none_or(|param| message.contains(param)
            || code == "template_error"
            || param == "model"),
        "{message}"
    );
    assert_eq!(server.chat(json!({})).await.status, 200);
}

#[tokio::test]
async fn wrong_types_are_named() {
    let server = says("x").await;
    for (extra, param) in [
        (json!({"model": 1}), "model"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"role": 1, "content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [1]}]}), "messages[0].content[0]"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}),
            "messages[0].content[0].text",
        ),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": [1]}), "top_p"),
        (json!({"n": 1.5}), "n"),
        (json!({"n": "1"}), "n"),
        (json!({"max_tokens": true}), "max_tokens"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream": true, "stream_options": true}), "stream_options"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"stop": 1}), "stop"),
        (json!({"stop": ["a", 1]}), "stop"),
        (json!({"stop_token_ids": [1.5]}), "stop_token_ids"),
        (json!({"stop_token_ids": 5}), "stop_token_ids"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"logit_bias": {"97": "x"}}), "logit_bias"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"seed": 0.5}), "seed"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"cache_salt": 5}), "cache_salt"),
    ] {
        refuses(&server, extra, Some(param), "invalid_type").await;
    }
}

#[tokio::test]
async fn values_out_of_range_are_named() {
    let server = says("x").await;
    for (extra, param) in [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"top_p": 1.01}), "top_p"),
        (json!({"top_p": -1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"repetition_penalty": 1e-30}), "repetition_penalty"),
        (json!({"frequency_penalty": 2.5}), "frequency_penalty"),
        (json!({"presence_penalty": -2.5}), "presence_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": -1}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -5}), "max_tokens"),
        (json!({"max_completion_tokens": -5}), "max_completion_tokens"),
        (json!({"max_tokens": 1e20}), "max_tokens"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"logit_bias": {"97": 101}}), "logit_bias"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
        (json!({"stop_token_ids": [258]}), "stop_token_ids"),
        (json!({"logit_bias": {"258": 1}}), "logit_bias"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 65]}), "stop"),
        (json!({"stop": "x".repeat(5000)}), "stop"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens"),
        (json!({"max_tokens": 5, "max_completion_tokens": 4}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0].type",
        ),
    ] {
        // A number that no integer type holds is a decimal for the JSON parser.
        let code = if extra["max_tokens"].is_f64() { "invalid_type" } else { "invalid_value" };
        refuses(&server, extra, Some(param), code).await;
    }
}

#[tokio::test]
async fn missing_fields_are_named() {
    let server = says("x").await;
    for (extra, param) in [
        (json!({"model": null}), "model"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "assistant", "content": null}]}), "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
        ),
    ] {
        refuses(&server, extra, Some(param), "missing_required_parameter").await;
    }
    let body = server.post(COMPLETIONS, &json!({"model": "tiny"})).await.json();
    check(&server, &body, &json!({}), Some("prompt"), "missing_required_parameter").await;
}

#[tokio::test]
async fn unsupported_fields_are_named_and_unknown_ones_ignored() {
    let server = says("x").await;
    for (param, value) in [
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("auto")),
        ("functions", json!([{}])),
        ("response_format", json!({"type": "json_schema"})),
        ("audio", json!({})),
        ("modalities", json!(["audio"])),
        ("prediction", json!({})),
        ("web_search_options", json!({})),
        ("guided_json", json!({})),
        ("structured_outputs", json!({"json": {}})),
        ("add_special_tokens", json!(true)),
    ] {
        refuses(&server, json!({param: value}), Some(param), "unsupported_parameter").await;
    }
    let extra = json!({"stream": true, "stream_options": {"continuous_usage_stats": true}});
    let param = "stream_options.continuous_usage_stats";
    refuses(&server, extra, Some(param), "unsupported_parameter").await;
    for (extra, param) in [(json!({"suffix": "x"}), "suffix"), (json!({"best_of": 2}), "best_of")] {
        let body = server.complete(extra.clone()).await.json();
        check(&server, &body, &extra, Some(param), "unsupported_parameter").await;
    }
    let fine = json!({"user": "u", "metadata": {"a": "b"}, "store": false, "tools": [], "brand_new_field": [1]});
    assert_eq!(server.chat(fine).await.status, 200);
}

#[tokio::test]
async fn prompts_that_are_no_prompts_are_refused() {
    let server = says("x").await;
    for (prompt, code) in [
        (json!([]), "invalid_value"),
        (json!(""), "invalid_value"),
        (json!([[]]), "invalid_value"),
        (json!([258]), "invalid_value"),
        (json!([-1]), "invalid_value"),
        (json!({}), "invalid_type"),
        (json!(["a", 1]), "invalid_type"),
        (json!([1, "a"]), "invalid_type"),
        (json!([[1], 2]), "invalid_type"),
        (json!([true]), "invalid_type"),
        (json!(vec!["a"; 513]), "invalid_value"),
    ] {
        let sent = json!({"prompt": prompt});
        let reply = server.complete(sent.clone()).await;
        assert_eq!(reply.status, 400);
        check(&server, &reply.json(), &sent, Some("prompt"), code).await;
    }
    let sent = json!({"prompt": vec!["a"; 100], "n": 6});
    check(&server, &server.complete(sent.clone()).await.json(), &sent, Some("n"), "invalid_value")
        .await;
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let server = says("x").await;
    for (reply, param) in [
        (
            server.chat(json!({"messages": [{"role": "user", "content": "a".repeat(400)}]})).await,
            "messages",
        ),
        (server.complete(json!({"prompt": "a".repeat(400)})).await, "prompt"),
        (server.complete(json!({"prompt": vec![97; 400]})).await, "prompt"),
        // Large enough for a blocking thread.
        (server.complete(json!({"prompt": "word ".repeat(50_000)})).await, "prompt"),
    ] {
        assert_eq!(reply.status, 400);
        check(&server, &reply.json(), &json!(param), Some(param), "context_length_exceeded").await;
        assert!(reply.text.contains(&(CONTEXT - 1).to_string()), "{}", reply.text);
    }
}

#[tokio::test]
async fn an_unknown_model_is_404() {
    let server = says("x").await;
    for path_reply in [
        server.chat(json!({"model": "nobody"})).await,
        server.complete(json!({"model": "tiny:nobody"})).await,
        server.get("/v1/models/nobody").await,
    ] {
        assert_eq!(path_reply.status, 404);
        check(&server, &path_reply.json(), &json!("model"), Some("model"), "model_not_found").await;
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_objects_are_refused() {
    let server = says("x").await;
    let deep = "[".repeat(100_000);
    for (body, code) in [
        (&b"{"[..], "invalid_json"),
        (b"", "invalid_json"),
        (b"{\"model\": tiny}", "invalid_json"),
        (b"{} trailing", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"null", "invalid_json"),
        (b"{\"model\": \"\\ud800\"}", "invalid_json"),
        (b"{\"temperature\": 1e999}", "invalid_json"),
        (b"{\"model\": \"\xff\"}", "invalid_utf8"),
        (deep.as_bytes(), "invalid_json"),
    ] {
        for path in [CHAT, COMPLETIONS] {
            let reply = server.post_text(path, body.to_vec()).await;
            assert_eq!(reply.status, 400);
            check(&server, &reply.json(), &json!(code), None, code).await;
        }
    }
}

#[tokio::test]
async fn other_content_types_are_415() {
    let server = says("x").await;
    for content_type in [Some("text/plain"), Some("application/x-www-form-urlencoded"), None] {
        let mut request = Request::post(CHAT);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let reply = server.send(request.body(Body::from("{}")).unwrap()).await;
        assert_eq!(reply.status, 415);
        check(&server, &reply.json(), &json!(content_type), None, "unsupported_media_type").await;
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let limits = pleach::http::state::HttpLimits { body_bytes_max: 1000, ..Default::default() };
    let server = serve(Setup { limits, ..Setup::default() }).await;
    let too_long = "x".repeat(1001);
    // With its length announced, and without.
    let chunked =
        Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(too_long.clone())]));
    for request in [
        Request::post(CHAT)
            .header("content-type", "application/json")
            .header("content-length", too_long.len())
            .body(Body::from(too_long.clone()))
            .unwrap(),
        post(CHAT, chunked),
    ] {
        let reply = server.send(request).await;
        assert_eq!(reply.status, 413);
        check(&server, &reply.json(), &json!("body"), None, "request_too_large").await;
    }
}

#[tokio::test]
async fn a_template_that_refuses_is_400() {
    let server = says("x").await;
    let extra = json!({"messages": [{"role": "tool", "content": "a"}]});
    let body = server.chat(extra.clone()).await.json();
    check(&server, &body, &extra, Some("messages"), "template_error").await;
    let message = "chat template refuses the messages: tools are not for this model";
    assert_eq!(body["error"]["message"], message);
}

#[tokio::test]
async fn a_model_without_template_still_completes() {
    let server = serve(Setup { template: None, ..Setup::default() }).await;
    let reply = server.chat(json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (400, &json!("template_error"))
    );
    assert_eq!(server.complete(json!({})).await.status, 200);
}

#[tokio::test]
async fn an_endless_template_is_cut_off() {
    let template =
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
    let server = serve(Setup { template: Some(template), ..Setup::default() }).await;
    let reply = server.chat(json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (400, &json!("template_error"))
    );
    assert_eq!(server.complete(json!({})).await.status, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_have_the_envelope() {
    let server = says("x").await;
    let reply = server.get("/v1/models/%ff").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (400, &json!("invalid_value"))
    );
    let reply = server.get("/v1/nothing").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (404, &json!("unknown_url"))
    );
    let reply = server.get("/v1/completions").await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (405, &json!("method_not_allowed"))
    );
    let reply = server.send(Request::delete("/health").body(Body::empty()).unwrap()).await;
    assert_eq!(reply.status, 405);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("DELETE"));
}
