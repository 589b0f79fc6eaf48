//! Jobs of the trainer that computes: preferences and thumbs are learned, from the base and from an adapter, and the best
//! model is kept where that was asked for.

use serde_json::{Value, json};

use crate::{
    program::scratch_folder,
    server::Server,
    training::{JOBS, ask, command, get, new_file, wait_for},
};

const N_ROWS: usize = 24;

/// Pairs of answers that differ by their words.
fn pairs() -> Vec<Value> {
    let row = |n: usize| {
        let (chosen, rejected) = (format!("yes {n}"), format!("no {n}"));
        json!({"prompt": format!("is {n} a cat"), "chosen": chosen, "rejected": rejected})
    };
    (0..N_ROWS).map(row).collect()
}

/// The same answers, each with a thumb.
fn thumbs() -> Vec<Value> {
    let row = |n: usize| {
        let (is_good, prompt) = (n.is_multiple_of(2), format!("is {n} a cat"));
        let answer = if is_good { format!("yes {n}") } else { format!("no {n}") };
        json!({"prompt": prompt, "completion": answer, "label": is_good})
    };
    (0..N_ROWS).map(row).collect()
}

fn texts(word: &str) -> Vec<Value> {
    (0..N_ROWS).map(|n| json!({"text": format!("{n} {word} sat on mat {}", n * n)})).collect()
}

async fn succeeded(server: &Server, job: &str) -> Value {
    wait_for(server, job, |card| card["status"] == "succeeded").await
}

/// Losses of all steps, of training or, where there are any, of validation.
async fn losses(server: &Server, card: &Value, column: usize) -> Vec<f64> {
    let file = card["result_files"][0].as_str().unwrap();
    let path = format!("{}/v1/files/{file}/content", server.url);
    let csv = server.http.get(path).send().await.unwrap().text().await.unwrap();
    let fields = csv.lines().skip(1).filter_map(|line| line.split(',').nth(column));
    fields.filter_map(|field| field.parse().ok()).collect()
}

/// Means over the first and the last epoch's steps.
fn first_and_last(losses: &[f64], n_epochs: usize) -> (f64, f64) {
    let per_epoch = losses.len() / n_epochs;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..per_epoch]), mean(&losses[losses.len() - per_epoch..]))
}

fn job(model: &str, file: &str, method: &str, settings: &Value) -> Value {
    let method = json!({"type": method, method: {"hyperparameters": settings}});
    json!({"model": model, "training_file": file, "seed": 7, "method": method})
}

#[tokio::test(flavor = "multi_thread")]
async fn preferences_and_thumbs_are_learned_from_the_base_and_from_an_adapter() {
    let home = scratch_folder();
    let server = Server::run(command(home.path()), None);
    let settings = json!({
        "n_epochs": 6, "batch_size": 4, "lora_rank": 4, "learning_rate_multiplier": 20,
    });
    let file = new_file(&server, &texts("dogs")).await;
    let begun = ask(&server, &job("tiny", &file, "supervised", &settings)).await;
    let parent = succeeded(&server, &begun).await["fine_tuned_model"].clone();
    let parent = parent.as_str().unwrap();
    let generation = get(&server, &format!("/v1/adapters/{parent}")).await["generation"].clone();
    for (method, rows, first) in [("dpo", pairs(), 2f64.ln()), ("kto", thumbs(), 0.5)] {
        let file = new_file(&server, &rows).await;
        for model in ["tiny", parent] {
            let mut settings = settings.clone();
            if model == parent {
                settings.as_object_mut().unwrap().remove("lora_rank");
            }
            let begun = ask(&server, &job(model, &file, method, &settings)).await;
            let card = succeeded(&server, &begun).await;
            let is_parent = card["parent"] == generation;
            assert!(is_parent == (model == parent) && (is_parent || card["parent"].is_null()));
            let losses = losses(&server, &card, 1).await;
            assert_eq!(losses.len(), 6 * N_ROWS / 4);
            // Before the first step it is its own reference.
            assert!((losses[0] - first).abs() < 2e-4, "{method} from {model}: {losses:?}");
            let (before, after) = first_and_last(&losses, 6);
            assert!(after < 0.8 * before, "{method} from {model}: {before} to {after}");
        }
    }
    let events = get(&server, &format!("{JOBS}/{begun}/events?limit=1000")).await;
    let events = events["data"].as_array().unwrap();
    let step = events.iter().find(|event| event["data"]["step"] == 3).unwrap();
    for name in ["tokens_per_second", "memory_bytes"] {
        assert!(step["data"][name].as_f64().unwrap() > 0.0, "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_model_is_kept_and_a_training_ends_that_makes_no_progress() {
    let home = scratch_folder();
    let server = Server::run(command(home.path()), None);
    let file = new_file(&server, &texts("dogs")).await;
    // What is learned of the one says ever less of the other.
    let other: Vec<Value> = (0..N_ROWS)
        .map(|n| json!({"text": format!("{} zebras {n} walk 7 home", n * 31)}))
        .collect();
    let validation = new_file(&server, &other).await;
    let mut job = job(
        "tiny",
        &file,
        "supervised",
        &json!({
            "n_epochs": 40, "batch_size": 4, "lora_rank": 4, "learning_rate_multiplier": 30,
            "early_stopping": 2,
        }),
    );
    job["validation_file"] = json!(validation);
    let begun = ask(&server, &job).await;
    let card = succeeded(&server, &begun).await;
    let losses = losses(&server, &card, 3).await;
    let best = (0..losses.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
    assert!(losses.len() < 40 && losses.len() == best + 3, "{losses:?}");
    let step = (best + 1) * N_ROWS / 4;
    let model = card["fine_tuned_model"].as_str().unwrap();
    let generation = async |name: String| {
        get(&server, &format!("/v1/adapters/{name}")).await["generation"].clone()
    };
    let expected = generation(format!("{model}:ckpt-step-{step}")).await;
    assert!(expected.is_string() && generation(model.to_owned()).await == expected);
    let events = get(&server, &format!("{JOBS}/{begun}/events?limit=1000")).await;
    let events = events["data"].as_array().unwrap().iter();
    let ends = format!("the model is that of step {step}, the best on validation rows");
    let mut messages = events.filter_map(|event| event["message"].as_str());
    assert!(messages.any(|message| message.ends_with(&ends)), "{ends}");
}

async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.http.get(format!("{}/metrics", server.url)).send().await.unwrap();
    let text = text.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_beside_a_training_that_goes_on_between_their_steps() {
    let home = scratch_folder();
    let mut command = command(home.path());
    command.args(["--training-itl-budget", "50"]);
    let server = Server::run(command, None);
    let ask_for = async |n: usize| {
        let message = json!({"role": "user", "content": format!("tell me {n}")});
        let body = json!({
            "model": "tiny", "messages": [message], "temperature": 0, "max_tokens": 60,
            "ignore_eos": true,
        });
        server.post("/v1/chat/completions", body.to_string()).await.body["choices"].clone()
    };
    let alone = [ask_for(0).await, ask_for(1).await, ask_for(2).await];
    assert!(alone[0].is_array());
    let settings = json!({"n_epochs": 50, "batch_size": 1, "lora_rank": 4});
    let file = new_file(&server, &texts("dogs")).await;
    let begun = ask(&server, &job("tiny", &file, "supervised", &settings)).await;
    wait_for(&server, &begun, |card| card["status"] == "running").await;
    let mut trained = metric(&server, "pleach_training_seconds_total").await;
    let mut n_rounds = 0;
    loop {
        let (one, two, three) = tokio::join!(ask_for(0), ask_for(1), ask_for(2));
        assert_eq!([one, two, three], alone);
        let status = get(&server, &format!("{JOBS}/{begun}")).await["status"].clone();
        let after = metric(&server, "pleach_training_seconds_total").await;
        n_rounds += usize::from(after > trained);
        trained = after;
        if n_rounds == 5 || status != "running" {
            break;
        }
    }
    assert!(n_rounds > 0, "training went on while there were requests");
    assert!(metric(&server, "pleach_step_seconds_total").await > 0.0);
}
