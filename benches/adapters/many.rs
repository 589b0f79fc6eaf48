//! Many registered adapters against few. Two servers are up; the one that is not asked sleeps.

use crate::{
    options::Options,
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
    let load = options.load(8, 64, 8);
    let sides = [few.side(), many.side()];
    let pairs = compare(options, load, sides).await?;
    let (ranks, least) = if mixed {
        ("ranks 4 to 64".to_owned(), MIXED_AT_LEAST)
    } else {
        (format!("rank {}", options.args.rank), EQUAL_AT_LEAST)
    };
    let title = format!("{n_many} registered adapters against {FEW}, {ranks}, asked for evenly");
    let throughput = Measure::THROUGHPUT.must_be(Bound::AtLeast(least));
    let measures = [throughput, Measure::TTFT_P50, Measure::ITL_P50, Measure::ITL_P99];
    Ok(Outcome::of_pairs(&title, &pairs, &measures))
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
