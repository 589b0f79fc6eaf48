//! Adapters that are loaded and unloaded without pause while others are served.

use std::{
    cell::{Cell, RefCell},
    fmt,
    time::Instant,
};

use futures_util::future::try_join_all;
use pleach::bench::Summary;
use serde::Serialize;

use crate::{
    many::room_for,
    options::Options,
    outcome::{Bound, Measure, Outcome},
    peft::RandomAdapter,
    server::{Home, Server},
    turns::{Side, compare},
};

/// Folders that are loaded in turn.
const N_FOLDERS: usize = 16;
const ITL_AT_MOST: f64 = 1.1;

/// Loads and unloads.
#[derive(Debug)]
pub(crate) struct Churn<'a> {
    server: &'a Server,
    /// Below the server's adapter root.
    folders: Vec<String>,
    n_loaders: usize,
    next: Cell<usize>,
}

/// What was done meanwhile.
#[derive(Debug, Serialize)]
pub(crate) struct Churned {
    loads: usize,
    loads_per_s: f64,
    load_ms: Option<Summary>,
}

impl Churn<'_> {
    /// Goes on until it is over; nothing of it is left then.
    pub(crate) async fn run(&self, is_over: &Cell<bool>) -> anyhow::Result<Churned> {
        let (began, times) = (Instant::now(), RefCell::new(Vec::new()));
        try_join_all((0..self.n_loaders).map(|_| self.load_and_unload(is_over, &times))).await?;
        let times = times.into_inner();
        Ok(Churned {
            loads: times.len(),
            loads_per_s: times.len() as f64 / began.elapsed().as_secs_f64(),
            load_ms: Summary::of(times),
        })
    }

    async fn load_and_unload(
        &self,
        is_over: &Cell<bool>,
        times_ms: &RefCell<Vec<f64>>,
    ) -> anyhow::Result<()> {
        while !is_over.get() {
            let index = self.next.replace(self.next.get() + 1);
            // Loaders never share a name: there are more folders than loaders.
            let folder = &self.folders[index % self.folders.len()];
            let began = Instant::now();
            self.server.load(folder, folder).await?;
            times_ms.borrow_mut().push(began.elapsed().as_secs_f64() * 1e3);
            self.server.unload(folder).await?;
        }
        Ok(())
    }
}

impl fmt::Display for Churned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} loads, {:.1} a second", self.loads, self.loads_per_s)?;
        match self.load_ms {
            Some(ms) => write!(f, ", each {:.0} ms (P50), {:.0} ms at most", ms.p50, ms.max),
            None => Ok(()),
        }
    }
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Outcome> {
    // Few steps with prefill: ITL's 99th percentile is then of steps that only decode, where little shows much.
    let load = options.load(4, 512, 4);
    let n_loaders = options.args.loaders.max(1);
    let steady: Vec<_> = (0..load.clients)
        .map(|index| RandomAdapter { seed: index as u64, rank: options.args.rank })
        .collect();
    let loaded: Vec<_> = (0..N_FOLDERS.max(2 * n_loaders))
        .map(|index| RandomAdapter { seed: !(index as u64), rank: options.args.rank })
        .collect();
    let home = Home::new(options)?;
    let all = [steady.clone(), loaded.clone()].concat();
    let server =
        Server::start(options, &home, &room_for(options, &all, all.len(), all.len())).await?;
    let adapters = server.register(&home, &options.spec, &steady).await?;
    let mut folders = Vec::new();
    for (index, adapter) in loaded.iter().enumerate() {
        let folder = format!("churn{index}");
        adapter.write(&options.spec, &home.adapter_root().join(&folder))?;
        folders.push(folder);
    }
    let churn = Churn { server: &server, folders, n_loaders, next: Cell::new(0) };
    let side = |name: &str, churn| Side {
        name: name.to_owned(),
        server: &server,
        adapters: adapters.clone(),
        churn,
    };
    let sides = [side("without", None), side("with", Some(&churn))];
    let pairs = compare(options, load, sides).await?;
    let title = format!("adapters of rank {} loaded and unloaded without pause", options.args.rank);
    let measures = [
        Measure::ITL_P50,
        Measure::ITL_P99.must_be(Bound::AtMost(ITL_AT_MOST)),
        Measure::ITL_MAX,
        Measure::TTFT_P99,
        Measure::THROUGHPUT,
    ];
    Ok(Outcome::of_pairs(&title, &pairs, &measures))
}
