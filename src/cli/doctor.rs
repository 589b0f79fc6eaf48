//! `pleach doctor`: what is here, and what would be in the way.
#![expect(clippy::print_stdout, reason = "the findings go to standard output")]

mod machine;
mod surroundings;

use std::fmt;

use anyhow::bail;
use serde::Serialize;

use self::{
    machine::{Cuda, Machine},
    surroundings::{Home, Program, Reach},
};
use super::chat::server::trim_url;
use crate::{
    memory::show_bytes,
    models::{DEFAULT_MODEL, KNOWN_MODELS, ModelStore},
};

/// Tell what is here: processor, memory, accelerators, models, programs, server.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// A server to look for.
    #[arg(long, env = "PLEACH_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
}

/// Everything found out.
#[derive(Debug, Serialize)]
struct Findings {
    pleach_version: &'static str,
    machine: Machine,
    cuda: Cuda,
    home: Home,
    python: Option<Program>,
    hub: Reach,
    server: Reach,
    /// What keeps pleach from working.
    problems: Vec<String>,
    /// What is worth knowing.
    notes: Vec<String>,
}

/// Looks around and prints what it finds.
///
/// # Errors
/// When something is in the way of serving the default model.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let url = trim_url(&args.url);
    let store = ModelStore::from_env()?;
    let hub = store.hub_endpoint().unwrap_or("https://huggingface.co").to_owned();
    let (python, hub, server, cuda) = tokio::join!(
        surroundings::python(),
        surroundings::reach(hub),
        surroundings::reach(format!("{url}/health")),
        machine::cuda(),
    );
    let mut findings = Findings {
        pleach_version: env!("CARGO_PKG_VERSION"),
        machine: machine::look(),
        cuda,
        home: surroundings::home(&store),
        python,
        hub,
        server,
        problems: Vec::new(),
        notes: Vec::new(),
    };
    findings.judge();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{findings}");
    }
    match findings.problems.as_slice() {
        [] => Ok(()),
        [problem] => bail!("{problem}"),
        problems => bail!("{} problems: {}", problems.len(), problems.join("; ")),
    }
}

impl Findings {
    /// What the findings mean.
    fn judge(&mut self) {
        let has_default = self.home.models.iter().any(|model| model.name == DEFAULT_MODEL);
        let home = self.home.path.display();
        if !self.home.is_writable && !has_default {
            self.problems.push(format!(
                "cannot write to {home}: point PLEACH_HOME at a folder that you may write"
            ));
        }
        let has_pip = self.python.as_ref().is_some_and(|python| python.pip.is_some());
        let is_hub_there = self.hub.status.is_some();
        if !has_default && !has_pip && !is_hub_there {
            let hub = &self.hub.url;
            self.problems.push(format!(
                "the default model is not here, {hub} does not answer, and there is no pip"
            ));
        } else if !has_default && !is_hub_there {
            self.notes.push(
                "the default model will come through pip, as the hub does not answer".to_owned(),
            );
        }
        let needed = KNOWN_MODELS
            .iter()
            .find(|model| model.name == DEFAULT_MODEL)
            .map_or(0, |model| model.bytes);
        if self.machine.memory_available_bytes.is_some_and(|free| free < needed * 2) {
            self.problems.push("too little memory for the default model".to_owned());
        }
        for model in self.home.models.iter().filter(|model| !model.is_verified) {
            self.notes.push(format!(
                "{}: not checked, or changed since; the next use checks it",
                model.path.display()
            ));
        }
        if self.cuda.has_device() {
            self.notes
                .push("there is a GPU, but this build of pleach runs on the CPU only".to_owned());
        }
        if self.machine.isa == pleach_engine::cpu::isa::Isa::Portable.name() {
            self.notes.push(
                "no fast instruction set for this processor: the portable kernels are slow"
                    .to_owned(),
            );
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:14} {value}");
        let machine = &self.machine;
        line("pleach", &self.pleach_version)?;
        line(
            "system",
            &format_args!(
                "{} {} {}",
                machine.os,
                machine.kernel.as_deref().unwrap_or(""),
                machine.arch
            ),
        )?;
        line("processor", &machine.cpu_model.as_deref().unwrap_or("unknown"))?;
        line(
            "cores",
            &format_args!("{} usable of {}", machine.cores_usable, machine.cores_online),
        )?;
        let memory = (machine.memory_available_bytes, machine.memory_total_bytes);
        line("memory", &format_args!("{} free of {}", bytes(memory.0), bytes(memory.1)))?;
        let kinds = machine.instruction_sets.iter();
        let kinds: Vec<_> =
            kinds.map(|set| format!("{} {}", set.name, yes(set.is_available))).collect();
        line("kernels", &format_args!("{} ({})", machine.isa, kinds.join(", ")))?;
        line("cuda", &self.cuda)?;
        line("home", &format_args!("{}{}", self.home.path.display(), self.home.remark()))?;
        if self.home.models.is_empty() {
            line("models", &format_args!("none; `pleach pull` fetches {DEFAULT_MODEL}"))?;
        }
        for model in &self.home.models {
            let state = if model.is_verified { "checked" } else { "not checked" };
            line("model", &format_args!("{} {} {state}", model.name, show_bytes(model.bytes)))?;
        }
        match &self.python {
            Some(python) => {
                let pip = python.pip.as_deref().unwrap_or("no pip");
                line("python", &format_args!("{} {}, {pip}", python.name, python.version))?;
            }
            None => line("python", &"none")?,
        }
        line("hub", &self.hub)?;
        line("server", &self.server)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "PROBLEM: {problem}"))
    }
}

fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn bytes(amount: Option<u64>) -> String {
    amount.map_or_else(|| "unknown".to_owned(), show_bytes)
}
