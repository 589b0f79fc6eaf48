//! Rendered chats equal those of `transformers` (the default model's template) and of jinja2 in the same sandbox
//! (constructs of the templates of other models; made by `tests/fixtures/text/make.py`).

mod common;

use std::time::{Duration, Instant, UNIX_EPOCH};

use common::{default_model, fixture};
use pleach_engine::gguf::{GgufBuilder, GgufFile};
use pleach_text::{ChatTemplate, RenderOptions, TemplateError, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Value>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Goldens {
    now: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Value>,
    add_generation_prompt: bool,
    tools: Option<Value>,
    extra: Map<String, Value>,
    bos: Option<String>,
    eos: Option<String>,
    text: String,
}

#[test]
fn default_model_chats_equal_the_reference() {
    let file = default_model();
    let (template, tokenizer) =
        (ChatTemplate::from_gguf(&file).unwrap(), Tokenizer::from_gguf(&file).unwrap());
    let chats = fixture("chat.jsonl");
    let chats: Vec<Chat> = chats.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(chats.len(), 10);
    for Chat { messages, add_generation_prompt, text, ids } in chats {
        let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
        let rendered = template.render(&messages, &options).unwrap();
        assert_eq!(rendered, text);
        assert_eq!(tokenizer.encode(&rendered, true), ids, "{text:?}");
    }
}

#[test]
fn constructs_render_as_in_jinja2() {
    let Goldens { now, cases } = serde_json::from_str(&fixture("templates.json")).unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let template =
            ChatTemplate::new(&case.template, case.bos.as_deref(), case.eos.as_deref()).unwrap();
        let options = RenderOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools,
            extra: case.extra,
            now: Some(UNIX_EPOCH + Duration::from_secs(now)),
        };
        match template.render(&case.messages, &options) {
            Ok(text) => assert_eq!(text, case.text, "{}", case.name),
            Err(error) => panic!("{}: {error}", case.name),
        }
    }
}

fn render(source: &str, messages: &[Value]) -> Result<String, TemplateError> {
    ChatTemplate::new(source, None, None)?.render(messages, &RenderOptions::default())
}

fn user(content: &Value) -> Value {
    json!({"role": "user", "content": content})
}

#[test]
fn a_file_without_a_template_says_so() {
    let file = GgufFile::from_bytes(GgufBuilder::new().to_bytes()).unwrap();
    assert!(matches!(ChatTemplate::from_gguf(&file), Err(TemplateError::NoTemplate)));
}

#[test]
fn a_second_template_is_for_chats_with_tools() {
    let mut builder = GgufBuilder::new();
    builder
        .meta("tokenizer.chat_template", "plain {{ bos_token }}{{ eos_token is defined }}")
        .meta("tokenizer.chat_template.tool_use", "with {{ tools | length }}")
        .meta("tokenizer.ggml.tokens", vec!["<s>"])
        .meta("tokenizer.ggml.bos_token_id", 0u32);
    let template =
        ChatTemplate::from_gguf(&GgufFile::from_bytes(builder.to_bytes()).unwrap()).unwrap();
    assert_eq!(template.render(&[], &RenderOptions::default()).unwrap(), "plain <s>False");
    let options = RenderOptions { tools: Some(json!([{}, {}])), ..RenderOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "with 2");
}

#[test]
fn text_parts_are_joined_and_others_refused() {
    let source = "{{ messages[0].content }}";
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(render(source, &[user(&parts)]).unwrap(), "a\nb");
    assert_eq!(render(source, &[user(&Value::Null)]).unwrap(), "");
    assert_eq!(render(source, &[json!({"role": "user"})]).unwrap(), "");
    let image =
        json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    let error = render(source, &[user(&json!("a")), user(&image)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"messages[1].content[1]: type "image_url" is not supported, only "text" is"#
    );
}

#[test]
fn what_is_no_message_is_refused_with_its_place() {
    let cases = [
        (json!("hi"), "messages[0]: must be an object, not a string"),
        (json!({"content": "x"}), "messages[0]: role is missing"),
        (json!({"role": 1, "content": "x"}), "messages[0]: role must be a string, not a number"),
        (user(&json!(5)), "messages[0]: content must be a string or a list of parts, not a number"),
        (user(&json!([{"text": "x"}])), "messages[0]: content[0].type is missing"),
        (user(&json!([{"type": "text"}])), "messages[0]: content[0].text is missing"),
    ];
    for (message, expected) in cases {
        assert_eq!(render("", &[message]).unwrap_err().to_string(), expected);
    }
}

#[test]
fn arguments_of_tool_calls_become_objects() {
    let source = "{{ messages[0].content is none }} {% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }};{% endfor %}";
    let call = |arguments: &str| json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
    let calls = [call(r#"{"b": 1, "a": [2.0]}"#), call(""), call("not JSON")];
    let message = json!({"role": "assistant", "content": null, "tool_calls": calls});
    assert_eq!(render(source, &[message]).unwrap(), r#"True {"b": 1, "a": [2.0]};{};"not JSON";"#);
}

#[test]
fn generation_blocks_are_their_content() {
    let source = "{% for m in messages %}\n{%- generation -%}\n {{ m.content }} {% endgeneration %}\n|{% endfor %}";
    assert_eq!(render(source, &[user(&json!("a")), user(&json!("b"))]).unwrap(), "a |b |");
}

#[test]
fn options_do_not_replace_the_chat() {
    let template =
        ChatTemplate::new("{{ messages | length }} {{ bos_token }} {{ mood }}", Some("<s>"), None)
            .unwrap();
    let Value::Object(extra) = json!({"messages": [], "bos_token": "x", "mood": "good"}) else {
        unreachable!()
    };
    let options = RenderOptions { extra, ..RenderOptions::default() };
    assert_eq!(template.render(&[user(&json!("a"))], &options).unwrap(), "1 <s> good");
}

#[test]
fn a_template_can_refuse_in_its_own_words() {
    let inside_a_macro =
        "{% macro f() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ f() }}";
    for source in ["{{ raise_exception('roles must alternate') }}", inside_a_macro] {
        let error = render(source, &[]).unwrap_err();
        assert!(
            matches!(&error, TemplateError::Raised { message } if message == "roles must alternate"),
            "{error:?}"
        );
    }
}

#[test]
fn a_broken_template_names_the_line() {
    let error = render("a\nb {% if %}", &[]).unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error}");
    let error =
        render("a\n\n{{ messages[0].content.nothing.more }}", &[user(&json!("x"))]).unwrap_err();
    assert!(matches!(error, TemplateError::Render { line: 3, .. }), "{error}");
    let error = render("{{ strftime_now('%Q') }}", &[]).unwrap_err();
    assert!(error.to_string().contains("strftime directive not supported: %Q"), "{error}");
}

/// Templates that would never end, or fill the memory, or the stack.
#[test]
fn hostile_templates_end_with_an_error() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    let loud = "{% set s = 'x' * 1000000 %}{% for a in range(1000) %}{{ s }}{% endfor %}";
    let nested = "{% set ns = namespace(x=[]) %}{% for a in range(2000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
    let nested_json = nested.replace("{{ ns.x }}", "{{ ns.x | tojson }}");
    for (source, expected) in [
        (endless, "did not end within 100000 steps"),
        (recursive, "recursion limit"),
        (loud, "wrote more than 67108864 bytes"),
        (nested, "nested deeper than 128 levels"),
        (nested_json.as_str(), "nested deeper than 128 levels"),
    ] {
        let started = Instant::now();
        let error = render(source, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_long_chat_has_the_steps_it_needs() {
    let messages: Vec<Value> = (0..5000).map(|turn| user(&json!(format!("turn {turn}")))).collect();
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content | trim + '\n' }}{% endif %}{% endfor %}";
    assert_eq!(render(source, &messages).unwrap().lines().count(), 5000);
}
