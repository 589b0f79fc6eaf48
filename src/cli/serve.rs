//! `pleach serve`: load, say what is served, answer until told to stop.
#![expect(clippy::print_stderr, reason = "the start-up message is for the person at the terminal")]

mod adapter_args;
pub mod args;
mod reload;
pub mod settings;

use std::{
    io::IsTerminal as _,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use pleach_engine::cuda::probe::probe;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};

pub use args::Args;
use reload::Reloader;
use settings::Settings;

use crate::{
    http::{router, server::Server, state::AppState},
    learning::run_rounds,
    memory::show_bytes,
    models,
    serving::{self, LoadReport},
    training::run_jobs,
};

/// Exit status after a second signal, as shells report an interrupt.
const EXIT_INTERRUPTED: i32 = 130;

/// How long a training may take to let go of its job: it looks every two seconds.
const TRAINING_STOP_MAX: Duration = Duration::from_secs(5);

/// Adapters that are listed at the start.
const ADAPTERS_SHOWN_MAX: usize = 16;

/// Serves until the first SIGINT or SIGTERM, then finishes what runs within the grace. A second signal ends the process
/// at once. SIGHUP reads the configuration again.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut reloader = Reloader::new(args)?;
    // Before anybody can know that we serve: whoever does may tell us to stop.
    let mut signals = StopSignals::catch().context("cannot wait for signals")?;
    let mut hangups = Hangups::catch().context("cannot wait for SIGHUP")?;
    let serving = tokio::select! {
        serving = start(&reloader.settings) => serving?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before serving");
            return Ok(());
        }
    };
    announce(&reloader.settings, &serving);
    let signal = loop {
        let reload = async {
            hangups.next().await;
            reloader.reload(&serving).await;
        };
        tokio::select! {
            signal = signals.next() => break signal,
            () = reload => {}
        }
    };
    let grace = reloader.settings.grace;
    tracing::info!(signal, grace_s = grace.as_secs_f64(), "stopping");
    tokio::spawn(async move {
        signals.next().await;
        eprintln!("stopped at once");
        std::process::exit(EXIT_INTERRUPTED);
    });
    serving.stop(grace).await;
    tracing::info!("stopped");
    Ok(())
}

/// A server inside another program: `pleach chat` talks to one when none is running.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn start_in_process(args: Args) -> anyhow::Result<Serving> {
    start(&Settings::from_args(&args.with_config_file()?)?).await
}

/// A running server.
#[derive(Debug)]
pub struct Serving {
    address: SocketAddr,
    report: LoadReport,
    state: Arc<AppState>,
    /// Whether anybody may ask, from anywhere.
    is_open: bool,
    /// Whether requests need a key.
    needs_key: bool,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<Server>,
    /// Runs jobs, if this server trains.
    training: Option<JoinHandle<()>>,
    /// Rounds of the learning loop that run here.
    rounds: JoinHandle<()>,
}

impl Serving {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more requests, lets running ones finish for at most `grace`, cancels the rest, and ends every
    /// connection.
    pub async fn stop(self, grace: Duration) {
        self.state.stopping.store(true, Ordering::Relaxed);
        // It may have stopped already.
        let _ = self.stop.send(());
        let server = self.accepting.await;
        self.state.training.wake();
        self.state.learning.wake.all();
        // Whoever waits for an adapter would wait longer than the grace.
        self.state.adapters.shutdown();
        self.state.engine.shutdown(grace).await;
        match server {
            Ok(server) => server.finish().await,
            Err(error) => tracing::error!(%error, "the accept loop died"),
        }
        self.state.capture.settled().await;
        if let Some(training) = self.training
            && timeout(TRAINING_STOP_MAX, training).await.is_err()
        {
            // Another process takes the job over when this one was not heard of for a while.
            tracing::warn!("a training does not stop in time");
        }
        if timeout(TRAINING_STOP_MAX, self.rounds).await.is_err() {
            tracing::warn!("a round does not stop in time");
        }
        if let Err(error) = self.state.store.clone().close().await {
            tracing::warn!(%error, "last uses of keys are not kept");
        }
    }
}

async fn start(settings: &Settings) -> anyhow::Result<Serving> {
    // The port first: another server there should be known before seconds of loading.
    let listener = TcpListener::bind(settings.address)
        .await
        .with_context(|| format!("cannot listen on {}", settings.address))?;
    let address = listener.local_addr().context("cannot tell the address")?;
    // It takes milliseconds, and knows whether there are keys: before a model is fetched or loaded.
    let store = serving::open_store(&settings.store).await?;
    let has_keys = store.has_keys().await.context("--database")?;
    let is_open = settings.check_exposure(has_keys)?;
    let model_path = models::resolve(&settings.model, std::io::stderr().is_terminal()).await?;
    let load_settings = settings.load_settings(model_path);
    let needs_key = has_keys || load_settings.operator_key.is_some();
    let (state, report) = serving::load(load_settings, store).await?;
    let (stop, stopped) = oneshot::channel();
    let training = run_jobs(&state);
    let rounds = run_rounds(&state);
    let router = router(Arc::clone(&state));
    let accepting = tokio::spawn(async move {
        let mut server = Server::default();
        // A dropped sender stops the server too.
        server.run(listener, router, async { stopped.await.unwrap_or_default() }).await;
        server
    });
    Ok(Serving { address, report, state, is_open, needs_key, stop, accepting, training, rounds })
}

/// The signals that stop a server. From [`StopSignals::catch`] on they no longer end the process by themselves.
#[cfg(unix)]
pub(in crate::cli) struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignals {
    pub(in crate::cli) fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for one; its name.
    pub(in crate::cli) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// SIGHUP. From [`Hangups::catch`] on it no longer ends the process.
#[cfg(unix)]
struct Hangups(tokio::signal::unix::Signal);

#[cfg(unix)]
impl Hangups {
    fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for one.
    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// There is none elsewhere.
#[cfg(not(unix))]
struct Hangups;

#[cfg(not(unix))]
impl Hangups {
    #[expect(clippy::unnecessary_wraps, reason = "catching signals can fail elsewhere")]
    fn catch() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Waits for what never comes.
    async fn next(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// Ctrl-C, all that there is elsewhere.
#[cfg(not(unix))]
pub(in crate::cli) struct StopSignals;

#[cfg(not(unix))]
impl StopSignals {
    #[expect(clippy::unnecessary_wraps, reason = "catching signals can fail elsewhere")]
    pub(in crate::cli) fn catch() -> std::io::Result<Self> {
        Ok(Self)
    }

    /// Waits for one; its name.
    pub(in crate::cli) async fn next(&mut self) -> &'static str {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}

fn announce(settings: &Settings, serving: &Serving) {
    let LoadReport { spec, model_bytes, device, kv_bytes, adapters, n_own_adapters, elapsed } =
        &serving.report;
    let load = settings.load_settings(std::path::PathBuf::new());
    let stats = serving.state.engine.stats();
    let names = serving.state.adapters.registry().base_names();
    let url = format!("http://{}", serving.address);
    eprintln!("pleach {} serves {} at {url}", env!("CARGO_PKG_VERSION"), names.join(", "));
    eprintln!(
        "  model        {} ({}, {} layers, context {}, {})",
        spec.name,
        serving.state.base.fingerprint,
        spec.n_layers,
        spec.context,
        show_bytes(*model_bytes as u64),
    );
    eprintln!("  device       {device}");
    if let Some(hint) = probe().hint() {
        eprintln!("               {hint}");
    }
    eprintln!(
        "  KV memory    {}, {} blocks; at most {} sequences a step, {} waiting",
        show_bytes(*kv_bytes),
        stats.kv_blocks_total,
        load.engine.max_batch,
        load.engine.max_queue,
    );
    if adapters.is_empty() {
        eprintln!("  adapters     none shared (--adapter NAME=DIR)");
    }
    for alias in adapters.iter().take(ADAPTERS_SHOWN_MAX) {
        let generation = &alias.generation;
        eprintln!(
            "  adapter      {} (generation {}, rank {}, {} parameters)",
            alias.name,
            generation.digest.short(),
            generation.info.rank_max,
            generation.info.n_parameters,
        );
    }
    if let Some(more @ 1..) = adapters.len().checked_sub(ADAPTERS_SHOWN_MAX) {
        eprintln!("               and {more} more");
    }
    if *n_own_adapters > 0 {
        eprintln!("               {n_own_adapters} of tenants");
    }
    eprintln!("  loaded in    {:.2} s", elapsed.as_secs_f64());
    if serving.is_open {
        eprintln!("  WARNING      open to the network without a key (--insecure)");
    }
    // An address that stands for all of this machine's is none to connect to.
    let url = if serving.address.ip().is_unspecified() {
        format!("http://localhost:{}", serving.address.port())
    } else {
        url
    };
    let model = adapters.first().map_or(names[0].as_str(), |alias| &*alias.name);
    let key = if serving.needs_key { " -H 'Authorization: Bearer KEY'" } else { "" };
    eprintln!(
        "try: curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \
         -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'"
    );
}
