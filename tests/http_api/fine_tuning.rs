//! `/v1/fine_tuning/jobs`: a job from a file to a model that is served, stopped and gone on with, and its shapes.

use std::sync::Arc;

use axum::http::Method;
use pleach::adapter_service::Target;
use pleach_adapters::Expect;
use pleach_store::{GenerationDigest, Origin, Owner, Quotas};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::{
    support::{BASE, OPERATOR_KEY, Server, Setup, adapter_config, says, serve, write_adapter},
    tenant_support::{tenant, until},
    training_support::{Script, new_file, rows},
};

const PATH: &str = "/v1/fine_tuning/jobs";

async fn server(script: &Arc<Script>) -> Server {
    serve(Setup { trainer: Some(Arc::clone(script) as _), ..Setup::default() }).await
}

async fn begin(server: &Server, extra: Value) -> Value {
    let file = new_file(server, None, &rows(12)).await;
    let mut body = json!({"model": BASE, "training_file": file});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let begun = server.post(PATH, &body).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    begun.json()
}

async fn job(server: &Server, job: &Value) -> Value {
    server.get(&format!("{PATH}/{}", job["id"].as_str().unwrap())).await.json()
}

async fn becomes(server: &Server, begun: &Value, status: &str) -> Value {
    until(status, async || job(server, begun).await["status"] == status).await;
    job(server, begun).await
}

async fn act(server: &Server, job: &Value, act: &str) -> (u16, Value) {
    let path = format!("{PATH}/{}/{act}", job["id"].as_str().unwrap());
    let reply = server.post(&path, &json!({})).await;
    (reply.status.as_u16(), reply.json())
}

async fn data(server: &Server, job: &Value, what: &str) -> Vec<Value> {
    let path = format!("{PATH}/{}/{what}", job["id"].as_str().unwrap());
    server.get(&path).await.json()["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_job_becomes_a_model_that_is_served() {
    let script = Script::steps(3);
    let server = server(&script).await;
    let method = json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}});
    let extra = json!({"suffix": "cats", "seed": 7, "method": method, "metadata": {"a": "b"}});
    let begun = begin(&server, extra).await;
    let id = begun["id"].as_str().unwrap();
    let settings = json!({
        "batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": 2, "lora_rank": "auto",
    });
    let expected = json!({
        "id": id, "object": "fine_tuning.job", "created_at": begun["created_at"],
        "finished_at": null, "estimated_finish": null, "model": BASE, "parent": null, "fine_tuned_model": null,
        "organization_id": "shared", "status": "validating_files", "hyperparameters": settings,
        "method": {"type": "supervised", "supervised": {"hyperparameters": settings}}, "seed": 7,
        "training_file": begun["training_file"], "validation_file": null, "result_files": [],
        "trained_tokens": null, "error": null, "integrations": [], "metadata": {"a": "b"},
        "user_provided_suffix": "cats",
    });
    assert_eq!(begun, expected);
    let done = becomes(&server, &begun, "succeeded").await;
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert_eq!(model, format!("ft:{BASE}:shared:cats:{}", &id[id.len() - 8..]));
    assert_eq!((&done["trained_tokens"], &done["error"]), (&json!(300), &Value::Null));
    assert!(done["finished_at"].as_i64() >= done["created_at"].as_i64());

    // It is a model like any other, and so is what was on the way.
    assert_eq!(
        server.chat(json!({"model": model})).await.json()["choices"][0]["message"]["content"],
        "TTTTT"
    );
    let checkpoints = data(&server, &begun, "checkpoints").await;
    assert_eq!(checkpoints.len(), 1);
    let checkpoint = &checkpoints[0];
    let name = format!("{model}:ckpt-step-1");
    let expected = json!({
        "id": checkpoint["id"], "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint["created_at"], "fine_tuning_job_id": id,
        "fine_tuned_model_checkpoint": name, "step_number": 1, "metrics": {"step": 1},
    });
    assert_eq!(checkpoint, &expected);
    assert_eq!(
        server.chat(json!({"model": name})).await.json()["choices"][0]["message"]["content"],
        "CCCCC"
    );
    let card = server.get(&format!("/v1/adapters/{model}")).await.json();
    assert_eq!(card["name"], model);
    let results = done["result_files"][0].as_str().unwrap();
    let file = server.get(&format!("/v1/files/{results}")).await.json();
    assert_eq!(file["purpose"], "fine-tune-results");
    let csv = server.get(&format!("/v1/files/{results}/content")).await.text;
    assert_eq!(csv, "step,train_loss\n12\n");

    let events = data(&server, &begun, "events").await;
    let messages: Vec<_> = events.iter().map(|event| event["message"].as_str().unwrap()).collect();
    assert_eq!(messages[0], "The job has successfully completed");
    assert_eq!(messages.last().unwrap(), &format!("Created fine-tuning job: {id}"));
    let step = events.iter().find(|event| event["message"] == "Step 2").unwrap();
    let expected = json!({
        "id": step["id"], "object": "fine_tuning.job.event", "created_at": step["created_at"],
        "level": "info", "message": "Step 2", "type": "metrics", "data": {"step": 2, "train_loss": 1.5},
    });
    assert_eq!(step, &expected);
    // In pages.
    let first = server.get(&format!("{PATH}/{id}/events?limit=3")).await.json();
    assert_eq!((&first["data"], &first["has_more"]), (&json!(events[..3]), &json!(true)));
    let after = first["last_id"].as_str().unwrap();
    let rest = server.get(&format!("{PATH}/{id}/events?after={after}")).await.json();
    assert_eq!((&rest["data"], &rest["has_more"]), (&json!(events[3..]), &json!(false)));
    let gone = server.delete(&format!("/v1/models/{name}")).await.json();
    assert_eq!(gone, json!({"id": name, "object": "model", "deleted": true}));
    assert_eq!(server.chat(json!({"model": name})).await.status, 404);
    let found = server.get(&format!("{PATH}?metadata[a]=b")).await.json();
    assert_eq!(found["data"], json!([done]));
    assert_eq!(server.get(&format!("{PATH}?metadata[a]=c")).await.json()["data"], json!([]));
}

/// An adapter of an owner's that says P and has a bias, if it is to have one.
async fn register(server: &Server, owner: Owner, name: &str, has_bias: bool) {
    let folder = server.state.adapters.new_folder().unwrap();
    write_adapter(folder.path(), 'P');
    if has_bias {
        let mut config = adapter_config();
        config["lora_bias"] = json!(true);
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        let file = folder.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let bias = [0; 32 * 4];
        let bias = TensorView::new(Dtype::F32, vec![32], &bias).unwrap();
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias".to_owned();
        let all = tensors.tensors().into_iter().chain([(name, bias)]);
        std::fs::write(&file, safetensors::serialize(all, None).unwrap()).unwrap();
    }
    let target = Target { owner, name: name.to_owned(), who: "test".to_owned() };
    server.state.adapters.register_trained(target, folder, Origin::Upload).await.unwrap();
}

#[tokio::test]
async fn a_job_by_rewards_keeps_its_grader() {
    let script = Script::steps(1);
    let server = server(&script).await;
    let grader = json!({
        "type": "text_similarity", "name": "near", "evaluation_metric": "rouge_l",
        "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
    });
    let method = json!({
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": {"eval_interval": 2}},
    });
    let begun = begin(&server, json!({"method": method})).await;
    let shown = &begun["method"]["reinforcement"];
    assert_eq!(
        (&shown["grader"], &shown["hyperparameters"]["eval_interval"]),
        (&grader, &json!(2))
    );
    assert_eq!(begun["hyperparameters"]["eval_interval"], Value::Null);
    let done = becomes(&server, &begun, "succeeded").await;
    assert_eq!(done["method"], begun["method"]);
    let model = done["fine_tuned_model"].as_str().unwrap();
    let generation =
        server.get(&format!("/v1/adapters/{model}")).await.json()["generation"].clone();
    let path = format!("/v1/adapters/{model}/generations/{}/lineage", generation.as_str().unwrap());
    let recipe = server.get(&path).await.json()["recipe"].clone();
    assert_eq!((&recipe["method"], &recipe["grader"]), (&json!("reinforcement"), &grader));
}

#[tokio::test]
async fn graders_are_tried_out_before_a_training_goes_by_them() {
    let server = says("x").await;
    let path = |what: &str| format!("/v1/fine_tuning/alpha/graders/{what}");
    let check = |operation: &str| {
        json!({
            "type": "string_check", "name": "check", "operation": operation,
            "input": "{{sample.output_json.unit}}", "reference": "{{item.unit}}",
        })
    };
    let valid = server.post(&path("validate"), &json!({"grader": check("eq")})).await;
    assert_eq!((valid.status.as_u16(), valid.json()), (200, json!({"grader": check("eq")})));
    let run = async |grader: Value, item: Value, sample: &str| {
        let body = json!({"grader": grader, "item": item, "model_sample": sample});
        let mut ran = server.post(&path("run"), &body).await.json();
        assert!(ran["metadata"]["execution_time"].is_f64(), "{ran}");
        ran["metadata"]["execution_time"] = json!(0);
        ran
    };
    let multi = json!({
        "type": "multi", "name": "both", "calculate_output": "0.5 * same + 0.25 * other",
        "graders": {"same": check("eq"), "other": check("ne")},
    });
    let errors = json!({
        "formula_parse_error": false, "sample_parse_error": false,
        "truncated_observation_error": false, "unresponsive_reward_error": false,
        "invalid_variable_error": false, "invalid_variable_error_details": null,
        "other_error": false, "python_grader_server_error": false,
        "python_grader_server_error_type": null, "python_grader_runtime_error": false,
        "python_grader_runtime_error_details": null, "model_grader_server_error": false,
        "model_grader_refusal_error": false, "model_grader_parse_error": false,
        "model_grader_server_error_details": null,
    });
    let expected = json!({
        "reward": 0.5, "sub_rewards": {"same": 1.0, "other": 0.0},
        "metadata": {
            "name": "both", "type": "multi", "errors": errors, "execution_time": 0,
            "scores": {"same": 1.0, "other": 0.0}, "token_usage": null, "sampled_model_name": null,
        },
        "model_grader_token_usage_per_model": {},
    });
    assert_eq!(run(multi.clone(), json!({"unit": "km"}), r#"{"unit": "km"}"#).await, expected);
    let unparsed = run(multi.clone(), json!({"unit": "km"}), "four km").await;
    assert_eq!(unparsed["metadata"]["errors"]["sample_parse_error"], true);
    let missing = run(multi, json!({}), "{\"unit\": \"km\"}").await;
    assert_eq!(missing["metadata"]["errors"]["invalid_variable_error_details"], "item.unit");
    for (what, body, param) in [
        ("validate", json!({}), "grader"),
        ("validate", json!({"grader": check("equals")}), "grader.operation"),
        ("validate", json!({"grader": {"type": "score_model", "name": "s"}}), "grader.type"),
        ("validate", json!({"grader": check("eq"), "item": {}}), "item"),
        ("run", json!({"grader": check("eq")}), "model_sample"),
        ("run", json!({"grader": check("eq"), "model_sample": 3}), "model_sample"),
        ("run", json!({"grader": check("eq"), "model_sample": "", "item": []}), "item"),
    ] {
        let refused = server.post(&path(what), &body).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status.as_u16(), &error["param"]), (400, &json!(param)), "{error}");
    }
}

#[tokio::test]
async fn a_job_goes_on_from_one_generation_of_an_adapter() {
    let script = Script::steps(1);
    let server = server(&script).await;
    register(&server, Owner::Shared, "mine", false).await;
    let card = |name: &str| format!("/v1/adapters/{name}");
    let parent = server.get(&card("mine")).await.json()["generation"].clone();
    let begun = begin(&server, json!({"model": "mine", "hyperparameters": {"lora_rank": 2}})).await;
    assert_eq!((&begun["model"], &begun["parent"]), (&json!("mine"), &parent));
    let done = becomes(&server, &begun, "succeeded").await;
    let model = done["fine_tuned_model"].as_str().unwrap();
    assert!(model.starts_with(&format!("ft:{BASE}:shared:")), "{model}");
    let said = server.chat(json!({"model": model})).await.json();
    assert_eq!(said["choices"][0]["message"]["content"], "UUUUU");
    let generation = server.get(&card(model)).await.json()["generation"].clone();
    let digest: GenerationDigest = generation.as_str().unwrap().parse().unwrap();
    let stored = server.state.store.generation(&Owner::Shared, &digest).await.unwrap();
    let Origin::Training { parent: from, job, .. } = stored.origin else { panic!("{stored:?}") };
    assert_eq!(Some(json!(from)), Some(parent));
    assert_eq!(json!(job), begun["id"]);

    // Moved meanwhile: it is the one that was asked for. Gone meanwhile: it cannot be had.
    script.allow(0);
    let first = begin(&server, json!({})).await;
    let second = begin(&server, json!({"model": model})).await;
    let third = begin(&server, json!({"model": "mine"})).await;
    register(&server, Owner::Shared, model, false).await;
    assert_eq!(server.delete(&card("mine")).await.status, 200);
    script.allow(1);
    becomes(&server, &first, "succeeded").await;
    let second = becomes(&server, &second, "succeeded").await;
    assert_eq!(second["parent"], generation);
    let third = becomes(&server, &third, "succeeded").await;
    assert_eq!(third["model"], "mine", "the name that is left has the same weights");
}

#[tokio::test]
async fn what_cannot_be_gone_on_from_is_refused_by_name() {
    let script = Script::steps(1);
    let setup = Setup {
        api_key: Some(OPERATOR_KEY),
        trainer: Some(Arc::clone(&script) as _),
        ..Setup::default()
    };
    let server = serve(setup).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let owner = Owner::Tenant(one.id.clone());
    register(&server, Owner::Shared, "shared", false).await;
    register(&server, owner.clone(), "biased", true).await;
    register(&server, owner.clone(), "own", false).await;
    let file = new_file(&server, Some(&one.key), &rows(10)).await;
    let ask = async |extra: Value| {
        let mut body = json!({"training_file": file});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        one.post(&server, PATH, &body).await
    };
    for (extra, param, words) in [
        (json!({"model": "shared"}), "model", "only the operator"),
        (json!({"model": "biased"}), "model", "lora_bias"),
        (
            json!({"model": "own", "hyperparameters": {"lora_rank": 3}}),
            "hyperparameters.lora_rank",
            "rank 2",
        ),
    ] {
        let refused = ask(extra.clone()).await;
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status.as_u16(), error["param"].as_str()),
            (400, Some(param)),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    // Nothing has it any more when its turn comes.
    script.allow(0);
    let begun = ask(json!({"model": BASE})).await.json();
    let waits = ask(json!({"model": "own"})).await.json();
    let path = |job: &Value| format!("{PATH}/{}", job["id"].as_str().unwrap());
    let target = Target { owner, name: "own".to_owned(), who: "test".to_owned() };
    server.state.adapters.remove(target, Expect::Anything).await.unwrap();
    script.allow(1);
    let status = async |job: &Value| one.get(&server, &path(job)).await.json()["status"].clone();
    until("the first is done", async || status(&begun).await == "succeeded").await;
    until("the second fails", async || status(&waits).await == "failed").await;
    let error = one.get(&server, &path(&waits)).await.json()["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&json!("invalid_model"), &json!("model")));
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_cancelled() {
    let script = Script::allowing(4, 1);
    let server = server(&script).await;
    let begun = begin(&server, json!({})).await;
    until("a step", async || script.made.lock().unwrap().len() == 1).await;
    assert_eq!(act(&server, &begun, "pause").await.1["status"], "paused");
    let (status, refused) = act(&server, &begun, "pause").await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("invalid_state")));
    script.allow(3);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(script.made.lock().unwrap().len(), 1, "it is paused");
    assert_eq!(act(&server, &begun, "resume").await.1["status"], "queued");
    until("more steps", async || script.made.lock().unwrap().len() == 3).await;
    assert_eq!(*script.made.lock().unwrap(), [0, 1, 2], "each once");
    // Its file stays as long as it is needed.
    let file = format!("/v1/files/{}", begun["training_file"].as_str().unwrap());
    let refused = server.delete(&file).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["error"]["code"]),
        (409, &json!("file_in_use"))
    );
    let (status, cancelled) = act(&server, &begun, "cancel").await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")));
    for what in ["cancel", "pause", "resume"] {
        assert_eq!(act(&server, &begun, what).await.0, 400, "{what}");
    }
    assert_eq!(server.delete(&file).await.status, 200);
    // The next one has its turn.
    script.allow(9);
    let next = begin(&server, json!({})).await;
    becomes(&server, &next, "succeeded").await;
    assert_eq!(job(&server, &begun).await["status"], "cancelled");
}

#[tokio::test]
async fn a_job_goes_on_where_another_process_was() {
    let script = Script::allowing(4, 2);
    let server = server(&script).await;
    let begun = begin(&server, json!({})).await;
    until("two steps", async || script.made.lock().unwrap().len() == 2).await;
    let again = Script::steps(4);
    let setup = Setup { trainer: Some(Arc::clone(&again) as _), ..Setup::default() };
    let server = server.restart(setup).await;
    let done = becomes(&server, &begun, "succeeded").await;
    assert_eq!(*again.made.lock().unwrap(), [2, 3]);
    assert_eq!(done["trained_tokens"], 400);
}

#[tokio::test]
async fn what_cannot_be_trained_on_fails_and_says_why() {
    let server = server(&Script::fails()).await;
    let begun = begin(&server, json!({})).await;
    let failed = becomes(&server, &begun, "failed").await;
    let expected = json!({"code": "invalid_training_file", "message": "too few rows", "param": "training_file"});
    assert_eq!((&failed["error"], &failed["fine_tuned_model"]), (&expected, &Value::Null));
    let last = &data(&server, &begun, "events").await[0];
    assert_eq!(
        (&last["level"], &last["message"]),
        (&json!("error"), &json!("The job failed: too few rows"))
    );
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_before_it_waits() {
    let script = Script::waits();
    let server = server(&script).await;
    let file = new_file(&server, None, &rows(10)).await;
    for (extra, status, code, param) in [
        (json!({"training_file": "file-none"}), 404, "file_not_found", None),
        (json!({"validation_file": "file-none"}), 404, "file_not_found", None),
        (json!({"model": "nobody"}), 404, "model_not_found", Some("model")),
        (json!({"model": "pirate"}), 400, "invalid_value", Some("model")),
        (json!({"n_epochs": 3}), 400, "invalid_value", Some("n_epochs")),
        (
            json!({"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "python", "name": "p"}}}}),
            400,
            "unsupported_parameter",
            Some("method.reinforcement.grader.type"),
        ),
    ] {
        let mut body = json!({"model": BASE, "training_file": file});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let refused = server.post(PATH, &body).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status.as_u16(), &error["code"]), (status, &json!(code)), "{error}");
        assert_eq!(error["param"].as_str(), param);
    }
    assert_eq!(server.get(PATH).await.json()["data"], json!([]));
    // Without a trainer.
    let none = says("x").await;
    let file = new_file(&none, None, &rows(10)).await;
    let refused = none.post(PATH, &json!({"model": BASE, "training_file": file})).await;
    assert_eq!((refused.status.as_u16(), refused.text.contains("CPU")), (400, true));
}

#[tokio::test]
async fn a_tenant_trains_for_itself_and_as_much_as_it_may() {
    let script = Script::steps(1);
    let setup = Setup {
        api_key: Some(OPERATOR_KEY),
        trainer: Some(Arc::clone(&script) as _),
        ..Setup::default()
    };
    let server = serve(setup).await;
    let quotas = Quotas { training_jobs: Some(0), ..Quotas::default() };
    let few = tenant(&server, "few", quotas).await;
    let file = new_file(&server, Some(&few.key), &rows(10)).await;
    let refused = few.post(&server, PATH, &json!({"model": BASE, "training_file": file})).await;
    let code = &refused.json()["error"]["code"];
    assert_eq!((refused.status.as_u16(), code), (403, &json!("quota_exceeded")));
    let one = tenant(&server, "one", Quotas::default()).await;
    let other = tenant(&server, "other", Quotas::default()).await;
    let file = new_file(&server, Some(&one.key), &rows(10)).await;
    let begun =
        one.post(&server, PATH, &json!({"model": BASE, "training_file": file})).await.json();
    let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
    until("done", async || one.get(&server, &path).await.json()["status"] == "succeeded").await;
    let model = one.get(&server, &path).await.json()["fine_tuned_model"].clone();
    assert_eq!(one.chat(&server, json!({"model": model})).await.status, 200);
    assert_eq!(other.chat(&server, json!({"model": model})).await.status, 404);
    let shared = other.send(&server, Method::GET, "/v1/adapters?owner=shared", None).await;
    assert!(!shared.text.contains("ft:"), "{}", shared.text);
}
