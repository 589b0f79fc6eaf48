//! One tenant floods, others do not: through the whole server, over the scripted runner. What is asserted is who came
//! before whom and who got how much, never how long it took.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pleach::tenants::COLD_TURNS;
use pleach_adapters::{ResidencyConfig, ResidencyLimits};
use pleach_engine::engine::EngineConfig;
use pleach_store::Quotas;
use serde_json::{Value, json};

use crate::{
    support::{LETTER_BYTES, Server, Setup, ids, serve, write_adapter},
    tenant_support::{TestTenant, metric, tenant, until},
};

const MAX_BATCH: usize = 8;
const FLOOD: usize = 400;
const STEADY: usize = 4;
/// Requests that a steady tenant always has under way: its share of the batch, and one that waits.
const STEADY_UNDER_WAY: usize = 4;
const STEADY_REQUESTS: usize = 160;
const QUIET_REQUESTS: usize = 6;
const TOKENS: u32 = 12;

fn request() -> Value {
    json!({"max_tokens": TOKENS, "ignore_eos": true})
}

async fn server(setup: Setup) -> Arc<Server> {
    let server = serve(Setup { tokens: ids(&"x".repeat(100)), ..setup }).await;
    server.script.lock().unwrap().step = Duration::from_millis(1);
    Arc::new(server)
}

fn engine(max_queue: usize) -> EngineConfig {
    EngineConfig { max_batch: MAX_BATCH, max_step_rows: 64, max_queue, prefix_cache: true }
}

/// Sends all at once, and counts those that were answered.
fn flood(server: &Arc<Server>, tenant: &TestTenant, bodies: Vec<Value>) -> Arc<AtomicUsize> {
    let answered = Arc::new(AtomicUsize::new(0));
    for body in bodies {
        let (server, tenant, answered) =
            (Arc::clone(server), tenant.clone(), Arc::clone(&answered));
        tokio::spawn(async move {
            if tenant.chat(&server, body).await.status == 200 {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    answered
}

async fn tokens_of(server: &Server, tenant: &str) -> f64 {
    let series =
        |kind: &str| format!("pleach_tenant_tokens_total{{kind=\"{kind}\",tenant=\"{tenant}\"}}");
    // As the fair order prices them.
    metric(server, &series("prompt")).await + 2.0 * metric(server, &series("completion")).await
}

#[tokio::test]
async fn who_floods_gets_a_share_and_the_quiet_do_not_wait() {
    let server = server(Setup { engine: engine(1024), ..Setup::default() }).await;
    let floods = tenant(&server, "flood", Quotas::default()).await;
    let quiet = tenant(&server, "quiet", Quotas::default()).await;
    let mut steady = Vec::new();
    for number in 0..STEADY {
        steady.push(tenant(&server, &format!("steady-{number}"), Quotas::default()).await);
    }
    let answered = flood(&server, &floods, vec![request(); FLOOD]);
    until("the flood waits", async || server.state.engine.stats().waiting >= MAX_BATCH).await;

    let mut clients = Vec::new();
    for tenant in &steady {
        for _ in 0..STEADY_UNDER_WAY {
            let (server, tenant) = (Arc::clone(&server), tenant.clone());
            clients.push(tokio::spawn(async move {
                for _ in 0..STEADY_REQUESTS / STEADY_UNDER_WAY {
                    assert_eq!(tenant.chat(&server, request()).await.status, 200);
                }
            }));
        }
    }
    let before_quiet = answered.load(Ordering::Relaxed);
    for _ in 0..QUIET_REQUESTS {
        let before = answered.load(Ordering::Relaxed);
        assert_eq!(quiet.chat(&server, request()).await.status, 200);
        let passed = answered.load(Ordering::Relaxed) - before;
        // Those that ran when it came, those that run beside it, and answers that were on their way: more of these on a busy
        // machine, but far from all.
        assert!(passed <= FLOOD / 4, "{passed} of the flood were answered meanwhile");
    }
    let shares = || async {
        let mut shares = vec![tokens_of(&server, "flood").await];
        for number in 0..STEADY {
            shares.push(tokens_of(&server, &format!("steady-{number}")).await);
        }
        shares
    };
    // From here all five always have something waiting.
    let began = shares().await;
    until("the steady have got more than half of what they want", async || {
        let got = tokens_of(&server, "steady-0").await - began[1];
        // Each costs its completion twice, and a prompt.
        got >= f64::from(2 * TOKENS) * STEADY_REQUESTS as f64
    })
    .await;
    let got: Vec<f64> = shares().await.iter().zip(&began).map(|(end, begin)| end - begin).collect();
    let (sum, of_squares) = (got.iter().sum::<f64>(), got.iter().map(|got| got * got).sum::<f64>());
    let jain = sum * sum / (got.len() as f64 * of_squares);
    assert!(jain >= 0.95, "Jain's index {jain} of {got:?}");
    assert!(answered.load(Ordering::Relaxed) < FLOOD, "else nothing was to be shared");
    assert!(answered.load(Ordering::Relaxed) > before_quiet, "nor does the flood starve");
    for client in clients {
        client.await.unwrap();
    }
}

/// Also for what waits already, and also when another process changes it.
#[tokio::test]
async fn a_tenant_of_more_weight_gets_more() {
    let server = server(Setup { engine: engine(1024), ..Setup::default() }).await;
    let one = tenant(&server, "one", Quotas::default()).await;
    let two = tenant(&server, "two", Quotas::default()).await;
    let n_answered = [&one, &two].map(|tenant| flood(&server, tenant, vec![request(); 200]));
    let count = || n_answered.each_ref().map(|answered| answered.load(Ordering::Relaxed));
    until("both have had some", async || count().iter().all(|&n| n >= MAX_BATCH)).await;
    let mut settings = server.state.store.tenant(&one.id).await.unwrap().settings;
    settings.weight = std::num::NonZeroU32::new(4).unwrap();
    server.state.store.change_tenant(&one.id, &settings).await.unwrap();
    server.state.tenants.refresh().await.unwrap();
    let before = count();
    until("one has had many more", async || count()[0] >= before[0] + 100).await;
    let [of_one, of_two] = [count()[0] - before[0], count()[1] - before[1]];
    assert!(of_one >= 2 * of_two && of_two > 0, "{of_one} and {of_two}");
}

#[tokio::test]
async fn who_floods_leaves_room_in_the_queue() {
    let server = server(Setup { engine: engine(32), ..Setup::default() }).await;
    let floods = tenant(&server, "flood", Quotas::default()).await;
    let quiet = tenant(&server, "quiet", Quotas::default()).await;
    let answered = flood(&server, &floods, vec![request(); 200]);
    let refused = "pleach_tenant_refused_total{reason=\"queue_share\",tenant=\"flood\"}";
    until("the flood is refused", async || metric(&server, refused).await > 100.0).await;
    for _ in 0..QUIET_REQUESTS {
        assert_eq!(quiet.chat(&server, request()).await.status, 200);
    }
    // Its half of the queue at least; more if some were admitted while others came.
    until("what was taken is answered", async || answered.load(Ordering::Relaxed) >= 16).await;
}

/// Every adapter is cold, as the device has room for one. The quiet tenant's is behind few of the flood's, and not behind
/// all of them.
#[tokio::test]
async fn who_floods_with_cold_adapters_holds_up_nobody() {
    const COLD: usize = 40;
    let limits = ResidencyLimits { max_loras: 1, ..ResidencyConfig::default().limits };
    let residency = ResidencyConfig { limits, ..ResidencyConfig::default() };
    let setup =
        Setup { engine: engine(256), residency, adapter_bytes: LETTER_BYTES, ..Setup::default() };
    let server = server(setup).await;
    let names: Vec<_> = (0..=COLD).map(|number| format!("adapter-{number}")).collect();
    for (name, letter) in names.iter().zip('A'..) {
        write_adapter(&server.root.join(name), letter);
        let body = json!({"lora_name": name, "lora_path": name});
        let loaded = server.post("/v1/load_lora_adapter", &body).await;
        assert_eq!(loaded.status, 200, "{}", loaded.text);
    }
    let floods = tenant(&server, "flood", Quotas::default()).await;
    let quiet = tenant(&server, "quiet", Quotas::default()).await;
    let body = |name: &String| json!({"model": name, "max_tokens": 8});
    let answered = flood(&server, &floods, names[1..].iter().map(body).collect());
    until("the flood is in line", async || {
        server.state.adapters.tier_facts().stats.waiting >= COLD_TURNS - 1
    })
    .await;
    let before = answered.load(Ordering::Relaxed);
    let reply = quiet.chat(&server, body(&names[0])).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let passed = answered.load(Ordering::Relaxed) - before;
    // Some were answered before it was in line at all.
    assert!(passed <= COLD / 2, "{passed} of {COLD} cold requests were answered before");
    until("the flood is answered too", async || answered.load(Ordering::Relaxed) == COLD).await;
}

/// The flood's adapters are warm and stay in use while its requests wait; a cold one needs the place of one of them.
#[tokio::test]
async fn what_waits_in_the_queue_does_not_hold_every_adapter() {
    let limits = ResidencyLimits { max_loras: 2, ..ResidencyConfig::default().limits };
    let residency = ResidencyConfig {
        limits,
        drain_after: Duration::from_millis(1),
        ..ResidencyConfig::default()
    };
    let server = server(Setup { engine: engine(1024), residency, ..Setup::default() }).await;
    write_adapter(&server.root.join("cold"), 'c');
    let body = json!({"lora_name": "cold", "lora_path": "cold"});
    assert_eq!(server.post("/v1/load_lora_adapter", &body).await.status, 200);
    let floods = tenant(&server, "flood", Quotas::default()).await;
    let quiet = tenant(&server, "quiet", Quotas::default()).await;
    let names = ["pirate", "extract"];
    let bodies = (0..FLOOD)
        .map(|index| json!({"model": names[index % 2], "max_tokens": TOKENS, "ignore_eos": true}));
    let answered = flood(&server, &floods, bodies.collect());
    until("the flood waits", async || server.state.engine.stats().waiting >= MAX_BATCH).await;
    let before = answered.load(Ordering::Relaxed);
    let reply = quiet.chat(&server, json!({"model": "cold", "max_tokens": 4})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let passed = answered.load(Ordering::Relaxed) - before;
    // What ran, what waited in the engine with the adapter that had to go, and what went on with the other meanwhile.
    // More the busier the machine: each hand-over between threads lets some pass.
    assert!(passed <= 6 * MAX_BATCH, "{passed} of {FLOOD} were answered before");
}
