//! The scripted server and small helpers over it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock, atomic::AtomicBool},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
    response::Response,
};
use pleach::{
    adapter_service::{AdapterService, AdapterSettings, AllowedRoots},
    feedback::Capture,
    http::{
        cpu_work::CpuWork,
        router,
        state::{AppState, Base, HttpLimits},
        v1_routes,
    },
    learning::{Examiner, Learning, ROUNDS_MAX, run_rounds},
    telemetry::{ServerFacts, Telemetry},
    tenants::{Caller, FairOrder, FlowSettings, OperatorKey, Tenants, TokenPrices},
    training::{FileChecks, Trainer, Training, run_jobs},
};
use pleach_adapters::{
    Expect, FolderInPlace, Generation, GenerationDigest, LoadedAdapter, ResidencyConfig, Tier,
};
use pleach_engine::{
    adapter_weights::AdapterWeights,
    backend::{RunError, StepRunner},
    engine::{EngineConfig, EngineHandle},
    gguf::{GgufBuilder, GgufFile},
    packed_adapter::{AdapterPacker, PackedAdapter, PlainPacker, ResidentAdapters},
    sampler::SampledToken,
    sampler::SamplingParams,
    spec::{Architecture, ModelSpec, RopeScaling},
    step_batch::{AdapterSlot, StepBatch},
    train::ProductPrecision,
};
use pleach_store::{BlobDigest, Blobs, Owner, Page, RemoteFolder, Store};
use pleach_text::{ChatTemplate, Tokenizer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tower::ServiceExt;

pub(crate) const BASE: &str = "tiny";
/// The operator's key, on servers that have one.
pub(crate) const OPERATOR_KEY: &str = "key-of-the-operator";
pub(crate) const CONTEXT: usize = 256;
pub(crate) const VOCAB: usize = 258;
pub(crate) const IM_END: u32 = 257;
/// Log-probability of every scripted token.
pub(crate) const LOGPROB: f32 = -0.25;

const TEMPLATE: &str = "{% for message in messages %}\
{% if message.role == 'tool' %}{{ raise_exception('tools are not for this model') }}{% endif %}\
<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What the runner does. Shared with the test.
#[derive(Debug)]
pub(crate) struct Script {
    /// Tokens that every sequence gets, in order; after them, end tokens.
    pub(crate) tokens: Vec<u32>,
    /// How long a step takes.
    pub(crate) step: Duration,
    /// How long an adapter is on its way to the device.
    pub(crate) install: Duration,
    /// Fail every step.
    pub(crate) fail: bool,
    /// What the last step's first sampled row asked.
    pub(crate) seen: Option<Arc<SamplingParams>>,
    /// The adapters of all rows so far.
    pub(crate) adapters: Vec<Option<AdapterSlot>>,
}

struct ScriptedRunner {
    spec: ModelSpec,
    kv_blocks: usize,
    script: Arc<Mutex<Script>>,
    adapter_bytes: usize,
    letters: Arc<Letters>,
}

impl StepRunner for ScriptedRunner {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn n_kv_blocks(&self) -> usize {
        self.kv_blocks
    }

    fn max_rows(&self) -> usize {
        64
    }

    fn step(&mut self, batch: &StepBatch) -> Result<Vec<SampledToken>, RunError> {
        let residents = self.letters.residents.lock().unwrap();
        let mut script = self.script.lock().unwrap();
        let pause = script.step;
        if script.fail {
            return Err(RunError::Device("the script says so".to_owned()));
        }
        script.adapters.extend(batch.sequences.iter().map(|sequence| sequence.adapter));
        script.seen =
            batch.sample_rows.first().map(|row| Arc::clone(&row.params)).or(script.seen.take());
        let sampled = batch
            .sample_rows
            .iter()
            .map(|row| {
                let place = usize::try_from(row.sample_index).unwrap();
                let scripted = script.tokens.get(place).copied().unwrap_or(IM_END);
                let of_row =
                    batch.sequences.iter().find(|sequence| sequence.rows.contains(&row.row));
                // A slot that is not resident fails the step.
                let letters = of_row.unwrap().adapter.map(|slot| residents.1[&slot].as_slice());
                let letter = letters.and_then(|letters| letters.iter().copied().cycle().nth(place));
                let scripted =
                    if place < script.tokens.len() { letter.unwrap_or(scripted) } else { scripted };
                let allowed =
                    if row.banned.contains(&scripted) { u32::from(b'.') } else { scripted };
                let token = row.forced.unwrap_or(allowed);
                let n_top = row.params.logprobs.unwrap_or(0);
                // The chosen one is the likeliest, then its neighbours; bytes beyond ASCII are never reached.
                let top = (0..n_top).map(|n| ((token + n) % 128, LOGPROB - n as f32)).collect();
                SampledToken { token, logprob: LOGPROB, top }
            })
            .collect();
        drop((script, residents));
        std::thread::sleep(pause);
        Ok(sampled)
    }

    fn adapter_packer(&self) -> Arc<dyn AdapterPacker> {
        Arc::new(PlainPacker { spec: self.spec.clone(), capacity_bytes: self.adapter_bytes })
    }

    fn adapters(&self) -> Arc<dyn ResidentAdapters> {
        Arc::clone(&self.letters) as Arc<dyn ResidentAdapters>
    }
}

/// The letters that each resident adapter says in turn instead of what the script says, if it has any: the first row of
/// its `B`, so that a sum says what its parts say. No slot is used twice.
#[derive(Debug)]
struct Letters {
    script: Arc<Mutex<Script>>,
    residents: Mutex<(u32, HashMap<AdapterSlot, Vec<u32>>)>,
}

impl ResidentAdapters for Letters {
    fn install(&self, packed: &PackedAdapter) -> Result<AdapterSlot, RunError> {
        let weights = packed.form::<AdapterWeights>()?;
        let first_row = weights.sites.first().map_or(&[][..], |site| &site.b[..site.rank]);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "letters")]
        let letters = first_row.iter().map(|value| *value as u32).collect();
        let pause = self.script.lock().unwrap().install;
        std::thread::sleep(pause);
        let mut residents = self.residents.lock().unwrap();
        residents.0 += 1;
        let slot = AdapterSlot(residents.0);
        residents.1.insert(slot, letters);
        Ok(slot)
    }

    fn remove(&self, slot: AdapterSlot) {
        self.residents.lock().unwrap().1.remove(&slot).expect("it was resident");
    }
}

/// What a test may change before the server starts.
pub(crate) struct Setup {
    pub(crate) tokens: Vec<u32>,
    /// How long a step takes.
    pub(crate) step: Duration,
    pub(crate) engine: EngineConfig,
    pub(crate) limits: HttpLimits,
    pub(crate) api_key: Option<&'static str>,
    pub(crate) template: Option<&'static str>,
    pub(crate) kv_blocks: usize,
    /// Bytes of the device for adapters; [`write_adapter`]'s take [`LETTER_BYTES`] each.
    pub(crate) adapter_bytes: usize,
    /// Whether adapters may be loaded from [`Server::root`].
    pub(crate) has_root: bool,
    pub(crate) residency: ResidencyConfig,
    /// Where blobs are, if not in a folder.
    pub(crate) blobs: Option<Blobs>,
    /// A folder in an object store that adapters may be loaded from.
    pub(crate) remote_root: Option<RemoteFolder>,
    /// SHA-256 of the base's file.
    pub(crate) base_digest: String,
    /// Whether the operator's completions are kept unasked.
    pub(crate) capture: bool,
    /// What trains.
    pub(crate) trainer: Option<Arc<dyn Trainer>>,
    /// What judges.
    pub(crate) examiner: Option<Arc<dyn Examiner>>,
    /// Rounds that are worked on at a time.
    pub(crate) rounds_max: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            tokens: ids("hello"),
            step: Duration::ZERO,
            engine: EngineConfig {
                max_batch: 8,
                max_step_rows: 64,
                max_queue: 64,
                prefix_cache: true,
            },
            limits: HttpLimits::default(),
            api_key: None,
            template: Some(TEMPLATE),
            kv_blocks: 512,
            adapter_bytes: 1 << 30,
            has_root: true,
            residency: ResidencyConfig::default(),
            blobs: None,
            remote_root: None,
            base_digest: "ab".repeat(32),
            capture: false,
            trainer: None,
            examiner: None,
            rounds_max: ROUNDS_MAX,
        }
    }
}

pub(crate) struct Server {
    /// Holds the folders below.
    world: Arc<TempDir>,
    /// Where adapters may be loaded from.
    pub(crate) root: PathBuf,
    /// Where the server keeps what comes.
    pub(crate) spool: PathBuf,
    /// Where it keeps what is stored.
    pub(crate) blobs: PathBuf,
    pub(crate) router: Router,
    pub(crate) state: Arc<AppState>,
    pub(crate) script: Arc<Mutex<Script>>,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    /// Waits for the end of an answer.
    pub(crate) async fn read(response: Response) -> Self {
        let (head, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { status: head.status, headers: head.headers, text }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    /// The JSON of every event but the last, which must be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self
            .text
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{:?}", self.text);
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// Ids of a text: its bytes.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// The server that follows `script`, one that says `text` and ends.
pub(crate) async fn says(text: &str) -> Server {
    serve(Setup { tokens: ids(text), ..Setup::default() }).await
}

pub(crate) async fn serve(setup: Setup) -> Server {
    serve_in(Arc::new(tempfile::tempdir().unwrap()), setup).await
}

/// A server over what another one left.
async fn serve_in(world: Arc<TempDir>, setup: Setup) -> Server {
    let file = gguf(setup.template);
    let script = Arc::new(Mutex::new(Script {
        tokens: setup.tokens,
        step: setup.step,
        install: Duration::ZERO,
        fail: false,
        seen: None,
        adapters: Vec::new(),
    }));
    let runner = ScriptedRunner {
        spec: spec(),
        kv_blocks: setup.kv_blocks,
        script: Arc::clone(&script),
        adapter_bytes: setup.adapter_bytes,
        letters: Arc::new(Letters { script: Arc::clone(&script), residents: Mutex::default() }),
    };
    let flows = Arc::new(FlowSettings::default());
    let policy = Box::new(FairOrder::new(Arc::clone(&flows), TokenPrices::default()));
    let engine = EngineHandle::start_with_policy(Box::new(runner), setup.engine, policy).unwrap();
    let (root, spool) = (world.path().join("root"), world.path().join("spool"));
    std::fs::create_dir_all(&root).unwrap();
    let roots: &[PathBuf] = if setup.has_root { std::slice::from_ref(&root) } else { &[] };
    let mut roots = AllowedRoots::new(roots).unwrap();
    if let Some(folder) = setup.remote_root {
        roots = roots.with_remote(folder);
    }
    let settings = AdapterSettings {
        roots,
        residency: setup.residency,
        spool: spool.clone(),
        ..AdapterSettings::default()
    };
    let names = vec![BASE.to_owned(), "tiny/two".to_owned()];
    let blobs = world.path().join("blobs");
    let kept = setup.blobs.unwrap_or_else(|| Blobs::in_folder(&blobs).unwrap());
    let database = world.path().join("pleach.db");
    let store = Store::open(database.to_str().unwrap(), kept).await.unwrap();
    let adapters =
        AdapterService::open(engine.clone(), names, settings, store.clone(), setup.base_digest)
            .await
            .unwrap();
    for (alias, byte) in [("pirate", 0xaa), ("extract", 0xbb)] {
        let packed = engine.adapter_packer().pack(&AdapterWeights::default()).unwrap();
        let generation = Generation::new(alias, &adapter(byte), FolderInPlace::new("nowhere"));
        let alias = adapters.register_packed(alias, generation, packed, Expect::Absent).unwrap();
        while adapters.tier(alias.generation.digest) != Tier::Device {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let facts = ServerFacts {
        model_name: BASE.to_owned(),
        context: CONTEXT,
        kv_blocks: 512,
        prefix_cache: true,
    };
    let telemetry = Arc::new(Telemetry::new(&facts).unwrap());
    let operator_key = setup.api_key.map(OperatorKey::new);
    let tenants = Tenants::new(store.clone(), operator_key, &engine, flows, Arc::clone(&telemetry));
    let capture = Capture::start(store.clone(), Arc::clone(&telemetry), setup.capture);
    let state = Arc::new(AppState {
        engine,
        base: Base {
            tokenizer: Arc::new(Tokenizer::from_gguf(&file).unwrap()),
            chat_template: ChatTemplate::from_gguf(&file)
                .map(Arc::new)
                .map_err(|error| error.to_string()),
            fingerprint: "fp_test".to_owned(),
            loaded_unix: 1,
        },
        adapters,
        store,
        telemetry,
        live_limits: RwLock::new(setup.limits),
        tenants,
        cpu: CpuWork::default(),
        capture,
        training: Training::new(setup.trainer, ProductPrecision::F32),
        learning: Learning::new(setup.examiner, setup.rounds_max),
        file_checks: FileChecks::default(),
        stopping: AtomicBool::new(false),
    });
    drop(run_jobs(&state));
    drop(run_rounds(&state));
    Server { router: router(Arc::clone(&state)), state, script, world, root, spool, blobs }
}

impl Server {
    /// The database itself, to do to it what no program does.
    pub(crate) async fn raw(&self) -> sqlx::AnyPool {
        let path = self.world.path().join("pleach.db");
        sqlx::AnyPool::connect(&format!("sqlite://{}", path.display())).await.unwrap()
    }

    /// Ends this server as if it was killed, and starts one over what it left.
    pub(crate) async fn restart(self, setup: Setup) -> Server {
        let world = Arc::clone(&self.world);
        self.state.engine.shutdown(Duration::ZERO).await;
        drop(self);
        serve_in(world, setup).await
    }

    /// The same server, as `caller` sees it.
    pub(crate) fn seen_by(&self, caller: &Caller) -> Server {
        let routes = v1_routes().layer(Extension(caller.clone()));
        Server {
            world: Arc::clone(&self.world),
            root: self.root.clone(),
            spool: self.spool.clone(),
            blobs: self.blobs.clone(),
            router: routes.with_state(Arc::clone(&self.state)),
            state: Arc::clone(&self.state),
            script: Arc::clone(&self.script),
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        Reply::read(self.begin(request).await).await
    }

    /// Sends a request up to the beginning of its answer.
    pub(crate) async fn begin(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.send(post(path, body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, body.to_string()).await
    }

    /// A chat of one user message, with `extra` fields.
    pub(crate) async fn chat(&self, extra: Value) -> Reply {
        Reply::read(self.begin_chat(extra).await).await
    }

    /// The same, up to the beginning of its answer.
    pub(crate) async fn begin_chat(&self, extra: Value) -> Response {
        let body = merge(
            serde_json::json!({"model": BASE, "messages": [{"role": "user", "content": "hi"}]}),
            extra,
        );
        self.begin(post("/v1/chat/completions", body.to_string())).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Reply {
        let request = Request::put(path).header("content-type", "application/json");
        self.send(request.body(body.to_string().into()).unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    /// The generation that a name points at.
    pub(crate) async fn generation(&self, name: &str) -> String {
        let card = self.get(&format!("/v1/adapters/{name}")).await.json();
        card["generation"].as_str().unwrap_or_else(|| panic!("{card}")).to_owned()
    }

    /// Names that are registered.
    pub(crate) async fn names(&self) -> Vec<String> {
        let list = self.get("/v1/adapters").await.json();
        let cards = list["data"].as_array().unwrap().iter();
        cards.map(|card| card["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Folders of adapters that have come and are not stored.
    pub(crate) fn spooled(&self) -> usize {
        let Ok(runs) = std::fs::read_dir(&self.spool) else { return 0 };
        runs.map(|run| std::fs::read_dir(run.unwrap().path()).unwrap().count() - 1).sum()
    }

    /// Shared generations and blobs that are stored.
    pub(crate) async fn stored(&self) -> (usize, usize) {
        let generations = self.state.store.generations(&Owner::Shared, &Page::FIRST).await.unwrap();
        let folders = std::fs::read_dir(self.blobs.join("sha256")).into_iter().flatten();
        let blobs =
            folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count());
        (generations.items.len(), blobs.sum())
    }

    /// The file of the blob with this content.
    pub(crate) fn blob_with(&self, content: &[u8]) -> PathBuf {
        let digest = BlobDigest(Sha256::digest(content).into());
        let path = self.state.store.blobs().local_path(&digest).unwrap();
        assert!(path.exists(), "no blob has this content");
        path
    }

    /// Waits until so many shared generations are stored, and no more blobs than their files.
    pub(crate) async fn stores(&self, n_generations: usize) {
        for _ in 0..500 {
            let (generations, blobs) = self.stored().await;
            if generations == n_generations && blobs <= 2 * n_generations && self.spooled() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} stored, {} folders", self.stored().await, self.spooled());
    }

    pub(crate) async fn complete(&self, extra: Value) -> Reply {
        let body = merge(serde_json::json!({"model": BASE, "prompt": "ab"}), extra);
        self.post("/v1/completions", &body).await
    }

    pub(crate) fn seen(&self) -> Arc<SamplingParams> {
        self.script.lock().unwrap().seen.clone().expect("a step ran")
    }

    /// Waits until no sequence runs or waits.
    pub(crate) async fn idle(&self) {
        for _ in 0..500 {
            let stats = self.state.engine.stats();
            if stats.running == 0 && stats.waiting == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine is still busy: {:?}", self.state.engine.stats());
    }
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

fn merge(mut body: Value, extra: Value) -> Value {
    let (Value::Object(fields), Value::Object(extra)) = (&mut body, extra) else {
        panic!("objects are needed")
    };
    fields.extend(extra);
    body
}

/// Bytes of an adapter of [`write_adapter`] on the device.
pub(crate) const LETTER_BYTES: usize = 2 * 2 * 32 * 4;

/// The config of an adapter of rank 2 on one linear.
pub(crate) fn adapter_config() -> Value {
    serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]})
}

/// The tensors of an adapter that says `letter`.
pub(crate) fn adapter_tensors(letter: char, n_in: usize) -> Vec<u8> {
    let a: Vec<u8> = std::iter::repeat_n(1.0_f32, 2 * n_in).flat_map(f32::to_le_bytes).collect();
    let value = f32::from(u16::try_from(u32::from(letter)).unwrap());
    let b: Vec<u8> = std::iter::repeat_n(value, 32 * 2).flat_map(f32::to_le_bytes).collect();
    let name = |part| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
    let view = |shape: Vec<usize>, bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap()
    };
    let views =
        [(name("lora_A"), view(vec![2, n_in], &a)), (name("lora_B"), view(vec![32, 2], &b))];
    safetensors::serialize(views, None).unwrap()
}

/// Writes a PEFT folder that says `letter`.
pub(crate) fn write_adapter(folder: &Path, letter: char) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), adapter_config().to_string()).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), adapter_tensors(letter, 32)).unwrap();
}

fn adapter(byte: u8) -> LoadedAdapter {
    LoadedAdapter {
        weights: AdapterWeights::default(),
        digest: GenerationDigest([byte; 32]),
        base_model_name: None,
        rank_max: 8,
        target_modules: Vec::new(),
        n_parameters: 1,
        tensor_bytes: 4,
        stored_f16_exact: true,
    }
}

fn spec() -> ModelSpec {
    ModelSpec {
        architecture: Architecture::Llama,
        name: "tiny".to_owned(),
        n_layers: 1,
        hidden: 32,
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: 32,
        ffn: 32,
        vocab: VOCAB,
        context: CONTEXT,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
    }
}

/// A file with a tokenizer whose ids are bytes, and two special tokens.
fn gguf(template: Option<&str>) -> GgufFile {
    // GPT-2's table: printable bytes are themselves, the others are numbered from U+0100.
    let mut others = 0x100_u32..;
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut tokens: Vec<String> = (0..=u8::MAX)
        .map(|byte| {
            let code = if printable(byte) { u32::from(byte) } else { others.next().unwrap() };
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    tokens.extend(["<|im_start|>".to_owned(), "<|im_end|>".to_owned()]);
    let mut types = vec![1_u32; 256];
    types.extend([3, 3]);
    let mut builder = GgufBuilder::new();
    builder
        .meta("general.architecture", "llama")
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", "gpt-2")
        .meta("tokenizer.ggml.tokens", tokens)
        .meta("tokenizer.ggml.token_type", types)
        .meta("tokenizer.ggml.merges", Vec::<String>::new())
        .meta("tokenizer.ggml.eos_token_id", IM_END);
    if let Some(template) = template {
        builder.meta("tokenizer.chat_template", template);
    }
    GgufFile::from_bytes(builder.to_bytes()).unwrap()
}
