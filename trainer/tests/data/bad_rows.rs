//! Every way in which a field can be wrong is an error with the line, the field's path, what was expected and what was
//! found.

use pleach_trainer::data::Format::{
    self, Classification, Kto, Preference, Regression, Reinforcement, Supervised, Text,
};

use crate::common::row_of;

/// Format, line, message. `U` stands for a message of the user.
const CASES: &[(Format, &str, &str)] = &[
    (Supervised, "[]", "row: expected an object, found a list"),
    (Supervised, "{}", "messages: expected a value, found nothing"),
    (Supervised, r#"{"messages":null}"#, "messages: expected a value, found nothing"),
    (Supervised, r#"{"messages":{}}"#, "messages: expected a list, found an object"),
    (
        Supervised,
        r#"{"messages":[]}"#,
        "messages: expected at least one message, found an empty list",
    ),
    (Supervised, r#"{"messages":["a"]}"#, "messages[0]: expected an object, found a string"),
    (
        Supervised,
        r#"{"messages":[{"content":"a"}]}"#,
        "messages[0].role: expected a value, found nothing",
    ),
    (
        Supervised,
        r#"{"messages":[{"role":1}]}"#,
        "messages[0].role: expected a string, found a number",
    ),
    (
        Supervised,
        r#"{"messages":[{"role":"bot","content":"a"}]}"#,
        r#"messages[0].role: expected "system", "developer", "user", "assistant" or "tool", found "bot""#,
    ),
    (
        Supervised,
        r#"{"messages":[{"role":"user"}]}"#,
        "messages[0].content: expected a value, found nothing",
    ),
    (
        Supervised,
        r#"{"messages":[{"role":"user","content":5}]}"#,
        "messages[0].content: expected a string or a list of parts, found a number",
    ),
    (
        Supervised,
        r#"{"messages":[U,{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{}}]}]}"#,
        r#"messages[1].content[1].type: expected "text", found "image_url""#,
    ),
    (
        Supervised,
        r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
        "messages[0].content[0].text: expected a value, found nothing",
    ),
    (
        Supervised,
        r#"{"messages":[U]}"#,
        "messages: expected a message of the assistant, found none",
    ),
    (
        Supervised,
        r#"{"messages":[{"role":"assistant","content":"a"}]}"#,
        r#"messages[0]: expected a message before the assistant's first, or "weight": 0, found an answer to nothing"#,
    ),
    (
        Supervised,
        r#"{"messages":[U,{"role":"assistant","content":"a","weight":0.5}]}"#,
        "messages[1].weight: expected 0 or 1, found 0.5",
    ),
    (
        Supervised,
        r#"{"messages":[{"role":"user","content":"a","weight":1}]}"#,
        "messages[0].weight: expected none: only the assistant's messages have one, found one",
    ),
    (
        Supervised,
        r#"{"messages":[U,{"role":"assistant","content":"a","wieght":1}]}"#,
        r#"messages[1]: expected no field beside role, content, name, tool_calls, tool_call_id, reasoning_content, weight, found "wieght""#,
    ),
    (
        Supervised,
        r#"{"messages":[U,{"role":"assistant","content":null,"refusal":"no"}]}"#,
        "messages[1].refusal: expected null, found a value that chat templates have no place for",
    ),
    (
        Supervised,
        r#"{"messages":[U,{"role":"assistant","tool_calls":[{"function":{}}]}]}"#,
        "messages[1].tool_calls[0].function.name: expected a value, found nothing",
    ),
    (
        Supervised,
        r#"{"messages":[U,{"role":"assistant","content":"a","tool_calls":[]}]}"#,
        "messages[1].tool_calls: expected a call, found an empty list",
    ),
    (
        Supervised,
        r#"{"messages":[U],"tools":[{"type":"function"}]}"#,
        "tools[0].function: expected a value, found nothing",
    ),
    (
        Supervised,
        r#"{"messages":[U],"tools":[],"functions":[]}"#,
        "functions: expected nothing beside tools, found both",
    ),
    (
        Supervised,
        r#"{"messages":[U],"parallel_tool_calls":"yes"}"#,
        "parallel_tool_calls: expected true or false, found a string",
    ),
    (
        Supervised,
        r#"{"messages":[U],"user":[]}"#,
        "messages: expected a message of the assistant, found none",
    ),
    (Preference, r#"{"preferred_output":[]}"#, "input: expected a value, found nothing"),
    (
        Preference,
        r#"{"input":{"messages":[{"role":"user"}]}}"#,
        "input.messages[0].content: expected a value, found nothing",
    ),
    (
        Preference,
        r#"{"input":{"messages":[U]}}"#,
        "preferred_output: expected a value, found nothing",
    ),
    (
        Preference,
        r#"{"input":{"messages":[U]},"preferred_output":[]}"#,
        "preferred_output: expected one message of the assistant, found 0 messages",
    ),
    (
        Preference,
        r#"{"input":{"messages":[U]},"preferred_completion":[U]}"#,
        r#"preferred_completion[0].role: expected "assistant", found another role"#,
    ),
    (
        Preference,
        r#"{"prompt":"a","chosen":"b","rejected":3}"#,
        "rejected: expected a list, found a number",
    ),
    (
        Preference,
        r#"{"prompt":4}"#,
        "prompt: expected a list of messages or a string, found a number",
    ),
    (
        Kto,
        r#"{"prompt":[],"completion":"a","label":true}"#,
        "prompt: expected at least one message, found an empty list",
    ),
    (Kto, r#"{"prompt":"a","label":true}"#, "output: expected a value, found nothing"),
    (
        Kto,
        r#"{"prompt":"a","completion":"b","label":1}"#,
        "label: expected true or false, found a number",
    ),
    (Kto, r#"{"prompt":"a","completion":"b"}"#, "label: expected a value, found nothing"),
    (
        Reinforcement,
        r#"{"messages":[U,{"role":"assistant","content":"b"}]}"#,
        "messages[1]: expected a message that asks, found one of the assistant",
    ),
    (Text, r#"{"text":" \n"}"#, "text: expected a text, found an empty one"),
    (Text, r#"{"text":["a"]}"#, "text: expected a string, found a list"),
    (Classification, r#"{"text":"a"}"#, "label: expected a value, found nothing"),
    (
        Classification,
        r#"{"text":"a","label":1.5}"#,
        "label: expected a string, a whole number or a boolean, found a number",
    ),
    (Classification, r#"{"text":"","label":"x"}"#, "text: expected a text, found an empty one"),
    (Regression, r#"{"text":"a","score":"1"}"#, "score: expected a number, found a string"),
    (
        Regression,
        r#"{"text":"a","score":1e300}"#,
        "score: expected a number of 32 bits, found a larger one",
    ),
    (Text, r#"{"text":"a","trusted":"yes"}"#, "trusted: expected true or false, found a string"),
    (Text, r#"{"text":"a","user":[]}"#, "user: expected a string or a number, found a list"),
];

#[test]
fn a_bad_field_is_named_with_its_place() {
    for (format, line, expected) in CASES {
        let line = line.replace('U', r#"{"role":"user","content":"a"}"#);
        let error = row_of(*format, &line).expect_err(&line);
        assert_eq!(error.line(), Some(1), "{line}");
        assert_eq!(error.to_string(), format!("line 1: {expected}"), "{line}");
    }
}
