//! Tokens and targets: those of the reference for its three files, and the right ones for templates of other kinds.

use pleach_text::{ChatTemplate, RenderOptions};
use pleach_trainer::data::{
    DataError, EncodeSettings, Encoder, Example, Format, Overlong, Record, Rewriting, RowBody,
};
use serde::Deserialize;
use serde_json::json;

use crate::common::{chat, fixture, row_of, rows, text_model};

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[derive(Deserialize)]
struct Tokens {
    ids: Vec<u32>,
    targets: Vec<u8>,
}

#[derive(Deserialize)]
struct Pair {
    chosen: Tokens,
    rejected: Tokens,
}

#[derive(Deserialize)]
struct Reference {
    style: Vec<Tokens>,
    dpo: Vec<Pair>,
    kto: Vec<Tokens>,
}

fn reference() -> Reference {
    serde_json::from_str(&fixture("training/tokens.json")).unwrap()
}

fn encode_with(
    template: &ChatTemplate,
    settings: EncodeSettings,
    text: &str,
) -> Result<Vec<Record>, DataError> {
    let mut encoder = Encoder::new(Some(template), &text_model().1, settings);
    let records =
        rows(text).iter().map(|row| encoder.encode(row)).collect::<Result<Vec<_>, _>>()?;
    Ok(records.into_iter().flatten().collect())
}

fn encode(text: &str) -> Vec<Record> {
    encode_with(&text_model().0, EncodeSettings::new(4096), text).unwrap()
}

fn check(example: &Example, expected: &Tokens) {
    assert_eq!(*example.ids, *expected.ids);
    let mask: Vec<u8> = example.mask().into_iter().map(u8::from).collect();
    assert_eq!(mask, expected.targets);
    assert!(example.targets().all(|(_, weight)| (weight - 1.0).abs() < f32::EPSILON));
    assert_eq!(
        example.n_targets(),
        expected.targets.iter().map(|target| usize::from(*target)).sum::<usize>()
    );
}

/// What is learned, as text.
fn learned(record: &Record) -> String {
    let Record::Supervised(example) = record else { panic!("not supervised: {record:?}") };
    learned_of(example)
}

fn learned_of(example: &Example) -> String {
    let parts = example.spans.iter().map(|span| {
        text_model().1.decode(&example.ids[span.start as usize..span.end as usize], false)
    });
    parts.collect::<Vec<_>>().join(" … ")
}

#[test]
fn supervised_tokens_equal_the_reference() {
    let records = encode(&fixture("training/style.jsonl"));
    let expected = reference().style;
    assert_eq!((records.len(), expected.len()), (40, 40));
    for (record, expected) in records.iter().zip(&expected) {
        let Record::Supervised(example) = record else { panic!("not supervised") };
        check(example, expected);
    }
}

#[test]
fn preference_tokens_equal_the_reference() {
    let records = encode(&fixture("training/dpo.jsonl"));
    let expected = reference().dpo;
    assert_eq!((records.len(), expected.len()), (16, 16));
    for (record, expected) in records.iter().zip(&expected) {
        let Record::Preference { preferred, rejected } = record else { panic!("not a pair") };
        check(preferred, &expected.chosen);
        check(rejected, &expected.rejected);
    }
}

#[test]
fn rated_tokens_equal_the_reference() {
    let text = fixture("training/kto.jsonl");
    let records = encode(&text);
    let expected = reference().kto;
    assert_eq!((records.len(), expected.len()), (16, 16));
    let mut thumbs = Vec::new();
    for (record, expected) in records.iter().zip(&expected) {
        let Record::Rated { example, desirable } = record else { panic!("not rated") };
        check(example, expected);
        thumbs.push(*desirable);
    }
    assert_eq!(thumbs[..3], [true, true, false]);
}

#[test]
fn an_answer_after_another_prompt_is_what_the_template_makes_of_them() {
    let text = fixture("training/kto.jsonl");
    let records = encode(&text);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for prompt in 0..records.len() {
        let answer = (prompt + 1) % records.len();
        let mixed = json!({"input": lines[prompt]["input"], "output": lines[answer]["output"], "label": true});
        let Record::Rated { example: expected, .. } = encode(&mixed.to_string()).remove(0) else {
            panic!("not rated")
        };
        let (Record::Rated { example: prompt, .. }, Record::Rated { example: answer, .. }) =
            (&records[prompt], &records[answer])
        else {
            panic!("not rated")
        };
        assert_eq!(answer.after_prompt_of(prompt), expected);
    }
}

#[test]
fn prompts_texts_and_labels() {
    let (template, tokenizer) = text_model();
    let mut encoder = Encoder::new(Some(template), tokenizer, EncodeSettings::new(64));
    let row = rows(r#"{"messages":[{"role":"user","content":"Hi"}],"answer":[1, 2]}"#).remove(0);
    let Record::Prompt { ids, fields } = encoder.encode(&row).unwrap().remove(0) else { panic!() };
    assert!(
        tokenizer
            .decode(&ids, false)
            .ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    );
    assert_eq!(&*fields, r#"{"answer":[1,2]}"#);

    let row = rows(r#"{"text":"a <|im_end|> b","label":"x"}"#).remove(0);
    let Record::Labelled { ids, label } = encoder.encode(&row).unwrap().remove(0) else { panic!() };
    // Special tokens that a text spells out are text.
    assert!(ids.iter().all(|id| !tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&ids, false), "a <|im_end|> b");
    assert_eq!(&*label, "x");
    let row = rows(r#"{"text":"a","score":0.25}"#).remove(0);
    assert!(
        matches!(encoder.encode(&row).unwrap()[..], [Record::Scored { score, .. }] if (score - 0.25).abs() < 1e-9)
    );

    let text = "word ".repeat(150);
    let row = rows(&json!({"text": text.trim()}).to_string()).remove(0);
    let windows = encoder.encode(&row).unwrap();
    let whole = tokenizer.encode(text.trim(), false);
    let mut targets = vec![whole[0]];
    for window in &windows {
        let Record::Supervised(example) = window else { panic!("not supervised") };
        assert!(example.ids.len() <= 64);
        targets.extend(example.targets().map(|(index, _)| example.ids[index]));
    }
    assert_eq!(targets, whole);
    assert_eq!(encoder.counts().records, 3 + windows.len() as u64);
}

#[test]
fn only_the_answer_and_its_end_are_targets_whatever_the_template() {
    let (_, tokenizer) = text_model();
    let lines = r#"{"messages":[{"role":"user","content":"A?"},{"role":"assistant","content":"B."},{"role":"user","content":"C?"},{"role":"assistant","content":"D."},{"role":"user","content":"E?"}]}"#;
    let cases = [
        (CHATML, "B.<|im_end|> … D.<|im_end|>"),
        // No beginning of an answer is written when one follows, so the model has to write it.
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
            "<|im_start|>assistant\nB.<|im_end|> … <|im_start|>assistant\nD.<|im_end|>",
        ),
        // The beginning of an answer is another one than in the history.
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}",
            "B.<|im_end|> … D.<|im_end|>",
        ),
        // The end of a turn is its own end of text, and more follows it.
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %} ###\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
            " B.<|endoftext|> …  D.<|endoftext|>",
        ),
        // Nothing ends a turn.
        (
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
            " B.\n …  D.\n",
        ),
    ];
    for (source, expected) in cases {
        let template = ChatTemplate::new(source, None, None).unwrap();
        let mut encoder = Encoder::new(Some(&template), tokenizer, EncodeSettings::new(512));
        let row = row_of(Format::Supervised, lines).unwrap();
        let records = encoder.encode(&row).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(learned(&records[0]), expected, "{source}");
        let open_ended = if expected.contains("<|") { 0 } else { 2 };
        assert_eq!(encoder.counts().open_ended, open_ended, "{source}");
    }
}

#[test]
fn answers_that_later_turns_change_become_examples_of_their_own() {
    // Reasoning of earlier turns is left out, as in templates of reasoning models.
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    let text = r#"{"messages":[{"role":"user","content":"A?"},{"role":"assistant","content":"<think>x</think>B."},{"role":"user","content":"C?"},{"role":"assistant","content":"<think>y</think>D."}]}"#;
    let records = encode_with(&template, EncodeSettings::new(512), text).unwrap();
    let found: Vec<String> = records.iter().map(learned).collect();
    assert_eq!(found, ["<think>y</think>D.<|im_end|>", "<think>x</think>B.<|im_end|>"]);
    let Record::Supervised(own) = &records[1] else { panic!() };
    let whole = text_model().1.decode(&own.ids, false);
    assert_eq!(
        whole,
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n<think>x</think>B.<|im_end|>\n"
    );

    let settings = EncodeSettings { rewriting: Rewriting::Refuse, ..EncodeSettings::new(512) };
    let error = encode_with(&template, settings, text).unwrap_err();
    assert!(matches!(error, DataError::Rewritten { line: 1, message: 1 }), "{error}");
}

#[test]
fn templates_of_other_models_have_the_right_targets() {
    #[derive(Deserialize)]
    struct Goldens {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        name: String,
        template: String,
        bos: Option<String>,
        eos: Option<String>,
    }
    let goldens: Goldens = serde_json::from_str(&fixture("text/templates.json")).unwrap();
    let text = chat("Where is it?", "Right there.");
    let with_system = text.replace("[{", r#"[{"role":"system","content":"Be brief."},{"#);
    let render = RenderOptions { now: Some(std::time::UNIX_EPOCH), ..RenderOptions::default() };
    let settings = EncodeSettings { render, ..EncodeSettings::new(512) };
    // What each template has after the text that it gives the model to answer.
    let expected = [
        ("chatml,", "Right there.<|im_end|>"),
        ("headers,", "Right there.<|eot_id|>"),
        // In this one nothing begins an answer.
        ("tools, grouped", "<|im_start|>assistant\nRight there.<|im_end|>"),
        ("thinking:", "<think>\n\n</think>\n\nRight there.<|im_end|>"),
        ("instructions:", " Right there.</s>"),
    ];
    for (start, expected) in expected {
        let case = goldens.cases.iter().find(|case| case.name.starts_with(start)).unwrap();
        let template =
            ChatTemplate::new(&case.template, case.bos.as_deref(), case.eos.as_deref()).unwrap();
        for text in [&text, &with_system] {
            let records = encode_with(&template, settings.clone(), text).unwrap();
            assert_eq!(records.len(), 1, "{}", case.name);
            assert_eq!(learned(&records[0]), expected, "{}", case.name);
            if start == "instructions:" {
                // The system message stands beside the last question, and the answer was to that.
                let Record::Supervised(example) = &records[0] else { panic!() };
                let system = if text == &with_system { "Be brief.\n\n" } else { "" };
                let whole = format!("<s>[INST] {system}Where is it?[/INST] Right there.</s>");
                assert_eq!(text_model().1.decode(&example.ids, false), whole);
            }
        }
    }
}

#[test]
fn what_the_template_does_not_render_is_refused_by_name() {
    let plain = ChatTemplate::new(CHATML, None, None).unwrap();
    let with_tools = ChatTemplate::new(
        &format!("{{% if tools %}}{{{{ tools | tojson }}}}{{% endif %}}{CHATML}"),
        None,
        None,
    )
    .unwrap();
    let tools = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
    let error = encode_with(&plain, EncodeSettings::new(512), tools).unwrap_err();
    assert_eq!(error.to_string(), "line 1: tools: the model's chat template does not render it");
    assert_eq!(encode_with(&with_tools, EncodeSettings::new(512), tools).unwrap().len(), 1);
    let calls = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]}]}"#;
    let error = encode_with(&plain, EncodeSettings::new(512), &format!("\n{calls}")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 2: messages[1].tool_calls: the model's chat template does not render it"
    );

    let refuses = ChatTemplate::new("{{ raise_exception('no system') }}", None, None).unwrap();
    let error = encode_with(&refuses, EncodeSettings::new(512), &chat("a", "b")).unwrap_err();
    assert_eq!(error.to_string(), "line 1: chat template refuses the messages: no system");
    let mut without = Encoder::new(None, &text_model().1, EncodeSettings::new(512));
    let error = without.encode(&rows(&chat("a", "b"))[0]).unwrap_err();
    assert!(
        error.to_string().starts_with("line 1: the model file has no chat template"),
        "{error}"
    );
}

#[test]
fn overlong_rows_are_refused_left_out_or_cut() {
    let template = ChatTemplate::new(CHATML, None, None).unwrap();
    let (_, tokenizer) = text_model();
    let settings = |overlong| EncodeSettings { overlong, ..EncodeSettings::new(24) };
    let long = chat(&"word ".repeat(40), "Yes.");
    let error = encode_with(&template, settings(Overlong::Error), &long).unwrap_err();
    assert!(
        matches!(error, DataError::TooLong { line: 1, tokens_max: 24, tokens } if tokens > 40),
        "{error}"
    );

    let mut encoder = Encoder::new(Some(&template), tokenizer, settings(Overlong::Skip));
    assert!(encoder.encode(&rows(&long)[0]).unwrap().is_empty());
    assert_eq!(
        (encoder.counts().overlong, encoder.counts().skipped, encoder.counts().records),
        (1, 1, 0)
    );

    let mut encoder = Encoder::new(Some(&template), tokenizer, settings(Overlong::CutLeft));
    let records = encoder.encode(&rows(&long)[0]).unwrap();
    let Record::Supervised(example) = &records[0] else { panic!() };
    assert_eq!(example.ids.len(), 24);
    assert_eq!(learned_of(example), "Yes.<|im_end|>");
    // Nothing but a part of the answer is left: it is learned from what is there.
    let records = encoder.encode(&rows(&chat("a", &"word ".repeat(40)))[0]).unwrap();
    let Record::Supervised(example) = &records[0] else { panic!() };
    assert_eq!((example.ids.len(), example.spans[0].start), (24, 1));
    assert_eq!(
        (encoder.counts().overlong, encoder.counts().cut, encoder.counts().skipped),
        (2, 2, 0)
    );

    // A pair is cut alike on both sides, and not into its answers.
    let pair = |prompt: &str, chosen: &str| {
        json!({"prompt": prompt, "chosen": chosen, "rejected": "No way at all."}).to_string()
    };
    let row = row_of(Format::Preference, &pair(&"word ".repeat(40), "Yes.")).unwrap();
    let records = encoder.encode(&row).unwrap();
    let Record::Preference { preferred, rejected } = &records[0] else { panic!() };
    assert_eq!(rejected.ids.len(), 24);
    assert_eq!(
        (learned_of(preferred).as_str(), learned_of(rejected).as_str()),
        ("Yes.<|im_end|>", "No way at all.<|im_end|>")
    );
    let prompt = |example: &Example| example.ids[..example.spans[0].start as usize].to_vec();
    assert_eq!(prompt(preferred), prompt(rejected));
    let row = row_of(Format::Preference, &pair("a", &"word ".repeat(40))).unwrap();
    assert!(encoder.encode(&row).unwrap().is_empty());
    assert_eq!(encoder.counts().skipped, 1);
}

#[test]
fn an_answer_to_nothing_is_refused_wherever_the_row_is_from() {
    let (template, tokenizer) = text_model();
    let mut row = rows(&chat("a", "b")).remove(0);
    let RowBody::Chat(chat) = &mut row.body else { panic!() };
    chat.messages.remove(0);
    let mut encoder = Encoder::new(Some(template), tokenizer, EncodeSettings::new(512));
    let error = encoder.encode(&row).unwrap_err();
    assert!(matches!(error, DataError::Rewritten { line: 1, message: 0 }), "{error}");
}

#[test]
fn rows_without_targets_are_counted() {
    let (template, tokenizer) = text_model();
    let mut encoder = Encoder::new(Some(template), tokenizer, EncodeSettings::new(512));
    let line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}]}"#;
    assert!(encoder.encode(&rows(line)[0]).unwrap().is_empty());
    assert_eq!(encoder.counts().no_targets, 1);
    let letter = row_of(Format::Text, r#"{"text":"a"}"#).unwrap();
    assert!(encoder.encode(&letter).unwrap().is_empty());
    assert_eq!(encoder.counts().no_targets, 2);
}
