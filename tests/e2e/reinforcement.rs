//! Training by rewards: answers are sampled by the engine that serves, graded, and learned from.

use serde_json::{Value, json};

use crate::{
    program::scratch_folder,
    server::{BASE, Server},
    training::{JOBS, ask, command, get, new_file, wait_for},
};

const N_ROWS: usize = 16;

/// So many, each with a number; those of another `salt` share no words with them.
fn prompts(n_rows: usize, salt: usize) -> Vec<Value> {
    let words = [["say", "something", "about"], ["tell", "me", "more of"]][salt];
    let row = |n: usize| {
        let n = (n + 1) * (7919 + 31 * salt);
        let content = format!("{n} {} {} {} {}", words[0], n * n, words[1], words[2]);
        let message = json!({"role": "user", "content": content});
        json!({"messages": [message], "wanted": "o"})
    };
    (0..n_rows).map(row).collect()
}

/// Almost all of it for an answer that has what its row wants, a little for one that says anything.
fn grader() -> Value {
    let check = |operation: &str, reference: &str| {
        json!({
            "type": "string_check", "name": "check", "operation": operation,
            "input": "{{sample.output_text}}", "reference": reference,
        })
    };
    json!({
        "type": "multi", "name": "both", "calculate_output": "min(0.9 * has + 0.1 * says, 1)",
        "graders": {"has": check("ilike", "{{item.wanted}}"), "says": check("ne", "")},
    })
}

fn job(model: &str, file: &str, validation: Option<&str>, settings: &Value) -> Value {
    let method = json!({
        "type": "reinforcement",
        "reinforcement": {"grader": grader(), "hyperparameters": settings},
    });
    json!({
        "model": model, "training_file": file, "validation_file": validation, "seed": 7,
        "method": method,
    })
}

async fn succeeded(server: &Server, job: &str) -> Value {
    wait_for(server, job, |card| card["status"] == "succeeded").await
}

/// Metrics of all steps, the first one first.
async fn steps(server: &Server, job: &str) -> Vec<Value> {
    let events = get(server, &format!("{JOBS}/{job}/events?limit=1000")).await;
    let events = events["data"].as_array().unwrap().iter().rev();
    let metrics = events.map(|event| event["data"].clone());
    metrics.filter(|metrics| metrics["total_steps"].is_u64()).collect()
}

async fn text(server: &Server, path: &str) -> String {
    let path = format!("{}{path}", server.url);
    server.http.get(path).send().await.unwrap().text().await.unwrap()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rewarded_is_said_more_often() {
    let home = scratch_folder();
    let server = Server::run(command(home.path()), None);
    let file = new_file(&server, &prompts(N_ROWS, 0)).await;
    let validation = new_file(&server, &prompts(10, 1)).await;
    let settings = json!({
        "n_epochs": 15, "batch_size": 4, "lora_rank": 4, "learning_rate_multiplier": 60,
        "max_completion_tokens": 8, "eval_interval": 10, "eval_samples": 4,
    });
    let begun = ask(&server, &job("tiny", &file, Some(&validation), &settings)).await;
    let card = succeeded(&server, &begun).await;
    let steps = steps(&server, &begun).await;
    assert_eq!(steps.len(), 60);
    let of = |name: &'static str| steps.iter().map(move |step| step[name].as_f64().unwrap());
    let (before, after) =
        (mean(of("train_reward_mean").take(8)), mean(of("train_reward_mean").skip(52)));
    assert!(after > before + 0.2, "{before} to {after}");
    // Importance weights are near 1, so the first loss is near zero; and the base is its own reference.
    assert!(of("train_kl").next().unwrap() < 1e-6);
    assert!(of("train_kl").next_back().unwrap() > 0.0);
    let measured: Vec<(u64, f64)> = steps
        .iter()
        .filter_map(|step| Some((step["step"].as_u64()?, step["valid_reward_mean"].as_f64()?)))
        .collect();
    assert_eq!(
        measured.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [10, 20, 30, 40, 50, 60]
    );
    assert!(measured[5].1 > measured[0].1, "{measured:?}");
    let file = card["result_files"][0].as_str().unwrap();
    let csv = text(&server, &format!("/v1/files/{file}/content")).await;
    assert!(
        csv.starts_with("step,train_loss,train_reward_mean,valid_loss,valid_reward_mean\n1,"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 61);
    // Nothing that was sampled with is left but the models.
    let adapters = get(&server, "/v1/adapters").await;
    let checkpoints = get(&server, &format!("{JOBS}/{begun}/checkpoints")).await;
    let n_checkpoints = checkpoints["data"].as_array().unwrap().len();
    assert_eq!(adapters["data"].as_array().unwrap().len(), n_checkpoints, "{adapters}");
    assert!(checkpoints["data"][0]["metrics"]["train_reward_mean"].is_f64(), "{checkpoints}");
}

/// The real model has four steps to find out that it had better say yes.
#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_learns_what_to_answer() {
    let server = Server::start(&[]);
    let things = [
        "apple", "river", "mountain", "guitar", "winter", "piano", "elephant", "garden", "bridge",
        "candle", "ocean", "lantern", "forest", "castle", "rocket", "desert",
    ];
    let rows: Vec<Value> = things
        .iter()
        .map(|thing| {
            let content = format!("Is a {thing} nice? Answer yes or no.");
            json!({"messages": [{"role": "user", "content": content}], "wanted": "yes"})
        })
        .collect();
    let file = new_file(&server, &rows).await;
    let settings = json!({
        "n_epochs": 1, "batch_size": 4, "lora_rank": 8, "learning_rate_multiplier": 6,
        "max_completion_tokens": 6,
    });
    let begun = ask(&server, &job(BASE, &file, None, &settings)).await;
    let card = succeeded(&server, &begun).await;
    let rewards: Vec<f64> = steps(&server, &begun)
        .await
        .iter()
        .map(|step| step["train_reward_mean"].as_f64().unwrap())
        .collect();
    assert!(rewards.len() == 4 && rewards[3] > rewards[0] + 0.3, "{rewards:?}");
    let question = json!({
        "model": card["fine_tuned_model"], "temperature": 0, "max_tokens": 6,
        "messages": [{"role": "user", "content": "Is a flower nice? Answer yes or no."}],
    });
    let said = server.post("/v1/chat/completions", question.to_string()).await.body;
    let said = said["choices"][0]["message"]["content"].as_str().unwrap().to_lowercase();
    assert!(said.contains("yes"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_training_samples_the_same_answers_again() {
    let settings = json!({
        "n_epochs": 50, "batch_size": 4, "lora_rank": 4, "learning_rate_multiplier": 20,
        "max_completion_tokens": 24, "eval_interval": 7,
    });
    let run = async |server: &Server| {
        let file = new_file(server, &prompts(N_ROWS, 0)).await;
        let validation = new_file(server, &prompts(10, 1)).await;
        ask(server, &job("tiny", &file, Some(&validation), &settings)).await
    };
    let outcome = async |server: &Server, job: &str| {
        let card = succeeded(server, job).await;
        let model = card["fine_tuned_model"].as_str().unwrap();
        let generation = get(server, &format!("/v1/adapters/{model}")).await["generation"].clone();
        let file = card["result_files"][0].as_str().unwrap();
        (generation, text(server, &format!("/v1/files/{file}/content")).await)
    };
    let home = scratch_folder();
    let undisturbed = Server::run(command(home.path()), None);
    let begun = run(&undisturbed).await;
    let expected = outcome(&undisturbed, &begun).await;
    drop(undisturbed);

    let home = scratch_folder();
    let server = Server::run(command(home.path()), None);
    let begun = run(&server).await;
    let is_under_way = |card: &Value| card["trained_tokens"].as_u64().is_some_and(|n| n > 0);
    let card = wait_for(&server, &begun, is_under_way).await;
    assert_eq!(card["status"], "running", "it was too fast to be killed");
    // Paused for a while, whether it samples or learns.
    let act = async |what: &str| {
        let reply = server.post(&format!("{JOBS}/{begun}/{what}"), "{}".to_owned()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    };
    act("pause").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let learned = async || get(&server, &format!("{JOBS}/{begun}")).await["trained_tokens"].clone();
    let paused = learned().await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(learned().await, paused, "it is paused");
    act("resume").await;
    let paused = paused.as_u64();
    wait_for(&server, &begun, |card| card["trained_tokens"].as_u64() > paused).await;
    // Killed hard.
    drop(server);
    let server = Server::run(command(home.path()), None);
    // Requests beside it change no answer.
    let chat = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40,
    });
    for _ in 0..5 {
        server.post("/v1/chat/completions", chat.to_string()).await;
    }
    let found = outcome(&server, &begun).await;
    let events = get(&server, &format!("{JOBS}/{begun}/events?limit=10000")).await;
    let resumed = events["data"].as_array().unwrap().iter().filter(|event| {
        event["message"].as_str().unwrap().starts_with("Training goes on after step ")
    });
    assert_eq!(resumed.count(), 2, "after the pause, and after the end");
    assert_eq!(found, expected);
}
