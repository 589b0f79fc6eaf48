//! Many registered adapters against few. Two servers are up; the one that is not asked sleeps.
//!
//! The bound is about registration: requests ask for adapters in turn, so that both sides have as many different ones in
//! flight. Then the same is asked for at random by more clients than there are few: of many adapters, nearly every row
//! of a step has another, of few about half; that ratio tells what reading more adapters in a step costs.

use crate::{
    options::{LoadShape, Options},
    outcome::{Bound, Measure, Outcome},
    peft::RandomAdapter,
    server::{Home, Server},
    turns::{Side, compare},
};

const FEW: usize = 5;
const MANY_DEFAULT: usize = 1000;
/// As many of each, on both sides.
const MIXED_RANKS: [usize; FEW] = [4, 8, 16, 32, 64];
const EQUAL_AT_LEAST: f64 = 0.97;
const MIXED_AT_LEAST: f64 = 0.95;

pub(crate) async fn measure(options: &Options, mixed: bool) -> anyhow::Result<Outcome> {
    let n_many = options.args.adapters.unwrap_or(MANY_DEFAULT).max(FEW);
    let adapters: Vec<_> = (0..n_many)
        .map(|index| RandomAdapter {
            seed: index as u64,
            rank: if mixed { MIXED_RANKS[index % FEW] } else { options.args.rank },
        })
        .collect();
    let few = Registered::start(options, &adapters[..FEW]).await?;
    let many = Registered::start(options, &adapters).await?;
    let in_turn = LoadShape { in_turn: true, ..options.load(FEW, 64, 8) };
    let at_random = options.load(8, 64, 8);
    let sides = || [few.side(), many.side()];
    let in_turn = compare(options, in_turn, sides()).await?;
    let at_random = compare(options, at_random, sides()).await?;
    let (ranks, least) = if mixed {
        ("ranks 4 to 64".to_owned(), MIXED_AT_LEAST)
    } else {
        (format!("rank {}", options.args.rank), EQUAL_AT_LEAST)
    };
    let title =
        |how| format!("{n_many} registered adapters against {FEW}, {ranks}, asked for {how}");
    let measures = |throughput| [throughput, Measure::TTFT_P50, Measure::ITL_P50, Measure::ITL_P99];
    let bounded = measures(Measure::THROUGHPUT.must_be(Bound::AtLeast(least)));
    let in_turn = Outcome::of_pairs(&title("in turn"), &in_turn, &bounded);
    let measures = measures(Measure::THROUGHPUT);
    Ok(in_turn.and("at_random", Outcome::of_pairs(&title("at random"), &at_random, &measures)))
}

/// A server with room for all of its adapters on the device.
struct Registered {
    server: Server,
    names: Vec<String>,
    _home: Home,
}

impl Registered {
    async fn start(options: &Options, adapters: &[RandomAdapter]) -> anyhow::Result<Self> {
        let home = Home::new(options)?;
        let flags = room_for(options, adapters, adapters.len(), adapters.len());
        let server = Server::start(options, &home, &flags).await?;
        let names = server.register(&home, &options.spec, adapters).await?;
        Ok(Self { server, names, _home: home })
    }

    fn side(&self) -> Side<'_> {
        Side {
            name: format!("{} registered", self.names.len()),
            server: &self.server,
            adapters: self.names.clone(),
            churn: None,
        }
    }
}

/// Flags for a server that has bytes for all of `adapters`, and places for so many on the device and in host memory.
pub(crate) fn room_for(
    options: &Options,
    adapters: &[RandomAdapter],
    n_resident: usize,
    n_in_host: usize,
) -> Vec<String> {
    let bytes: u64 = adapters.iter().map(|adapter| adapter.resident_bytes(&options.spec)).sum();
    let flags = [
        ("--max-loras", n_resident.to_string()),
        ("--max-cpu-loras", n_in_host.to_string()),
        // A little more: what replaces an adapter is there before the adapter has left.
        ("--adapter-memory", (bytes + bytes / 16).to_string()),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}
