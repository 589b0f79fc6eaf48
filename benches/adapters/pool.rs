//! Four times more adapters than the device has places for, against all resident.

use crate::{
    many::room_for,
    options::Options,
    outcome::{Bound, Measure, Outcome},
    peft::RandomAdapter,
    server::{Home, Server},
    turns::{Side, compare},
};

const ADAPTERS_DEFAULT: usize = 64;
const TIMES_MORE: usize = 4;
const TTFT_AT_MOST: f64 = 1.5;

/// With `cold`, host memory holds no more than the device either, so that three of four requests read from disk.
pub(crate) async fn measure(options: &Options, cold: bool) -> anyhow::Result<Outcome> {
    let n_adapters = options.args.adapters.unwrap_or(ADAPTERS_DEFAULT).max(TIMES_MORE);
    let n_places = n_adapters / TIMES_MORE;
    let adapters: Vec<_> = (0..n_adapters)
        .map(|index| RandomAdapter { seed: index as u64, rank: options.args.rank })
        .collect();
    let homes = [Home::new(options)?, Home::new(options)?];
    let all = room_for(options, &adapters, n_adapters, n_adapters);
    let few = room_for(options, &adapters, n_places, if cold { n_places } else { n_adapters });
    let resident = Server::start(options, &homes[0], &all).await?;
    let pool = Server::start(options, &homes[1], &few).await?;
    let names = resident.register(&homes[0], &options.spec, &adapters).await?;
    pool.register(&homes[1], &options.spec, &adapters).await?;
    let side = |name: String, server| Side { name, server, adapters: names.clone(), churn: None };
    let sides = [
        side(format!("all {n_adapters} resident"), &resident),
        side(format!("{n_places} places"), &pool),
    ];
    let pairs = compare(options, options.load(8, 64, 25), sides).await?;
    let title = format!(
        "{n_adapters} adapters on {n_places} places, the others {}",
        if cold { "on disk" } else { "in host memory" }
    );
    // Reading from disk has no bound: how long it takes beside steps is a choice between those who wait and the others.
    let ttft = if cold {
        Measure::TTFT_P99
    } else {
        Measure::TTFT_P99.must_be(Bound::AtMost(TTFT_AT_MOST))
    };
    let measures = [Measure::TTFT_P50, ttft, Measure::ITL_P99, Measure::THROUGHPUT];
    Ok(Outcome::of_pairs(&title, &pairs, &measures))
}
