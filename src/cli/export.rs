//! `pleach export onnx`: the model and its adapters for ONNX Runtime.
#![expect(clippy::print_stdout, reason = "a command that reports to the terminal")]

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use anyhow::Context as _;
use pleach_adapters::load_peft;
use pleach_engine::{gguf::GgufFile, model::read_spec, site::TargetModule, spec::ModelSpec};
use pleach_export::{
    ExportOptions, Exported, Form, Lora, LoraExport, NamedAdapter, Precision, export_onnx,
};

use crate::{memory::show_bytes, models};

/// Write the model and its adapters for another runtime.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    target: Target,
}

/// For which runtime.
#[derive(Debug, clap::Subcommand)]
enum Target {
    /// A folder for ONNX Runtime and onnxruntime-genai.
    Onnx(OnnxArgs),
}

/// A folder for ONNX Runtime and onnxruntime-genai.
#[derive(Debug, clap::Args)]
struct OnnxArgs {
    /// A known name, a GGUF file, or hf:OWNER/REPO[:FILE]
    #[arg(long, env = "PLEACH_MODEL", default_value = models::DEFAULT_MODEL, value_name = "NAME|PATH")]
    model: String,
    /// Operators: genai is what onnxruntime-genai's builder writes, standard is ONNX alone
    #[arg(long, value_enum, default_value_t)]
    form: FormName,
    /// Of the weights: int4 and int8 take the codes of the file over without loss
    #[arg(long, value_enum, default_value_t)]
    precision: PrecisionName,
    /// Of int4 and int8 products: 4 rounds activations to int8, 0 keeps them in f32 and is slow
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=4))]
    accuracy_level: u8,
    /// Modules whose activations stay in f32 at any accuracy level: v_proj suffers most from rounding and costs little
    #[arg(long, default_value = "v_proj", value_name = "MODULE,…|none")]
    f32_activations: Modules,
    /// What becomes of adapters [default: inputs where there are adapters, else none]
    #[arg(long, value_name = "inputs|merged:NAME|none")]
    lora: Option<LoraName>,
    /// A PEFT folder and its name; may be given again
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    adapters: Vec<AdapterFolder>,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum FormName {
    #[default]
    Genai,
    Standard,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum PrecisionName {
    F32,
    #[default]
    Int4,
    Int8,
}

/// `v_proj,o_proj`, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Modules(BTreeSet<TargetModule>);

impl FromStr for Modules {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(BTreeSet::new()));
        }
        let module = |name: &str| {
            TargetModule::from_name(name).ok_or_else(|| {
                let known = TargetModule::ALL.map(TargetModule::name).join(", ");
                format!("{name:?} is no linear of a layer; there are {known}, and none for none")
            })
        };
        text.split(',').map(module).collect::<Result<_, _>>().map(Self)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct LoraName(LoraExport);

impl FromStr for LoraName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "inputs" => LoraExport::Inputs,
            "none" => LoraExport::None,
            _ => match text.strip_prefix("merged:") {
                Some(name) if !name.is_empty() => LoraExport::Merged(name.to_owned()),
                _ => return Err("one of inputs, merged:NAME, none".to_owned()),
            },
        }))
    }
}

/// `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AdapterFolder {
    pub(super) name: String,
    pub(super) dir: PathBuf,
}

impl FromStr for AdapterFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, dir)) if !name.is_empty() && !dir.is_empty() => {
                Ok(Self { name: name.to_owned(), dir: dir.into() })
            }
            _ => Err("a name and a folder, as in support=adapters/support".to_owned()),
        }
    }
}

/// Exports, and tells what became of the weights.
///
/// # Errors
/// Whatever cannot be exported, by name.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Target::Onnx(args) = args.target;
    let model = models::resolve(&args.model, std::io::stderr().is_terminal()).await?;
    tokio::task::spawn_blocking(move || run_now(&args, &model)).await?
}

fn run_now(args: &OnnxArgs, model: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let file = GgufFile::open(model)?;
    let spec = read_spec(&file)?;
    let adapters = load_adapters(&args.adapters, &spec)?;
    let default = if adapters.is_empty() { LoraExport::None } else { LoraExport::Inputs };
    let options = ExportOptions {
        form: match args.form {
            FormName::Genai => Form::Genai,
            FormName::Standard => Form::Standard,
        },
        precision: match args.precision {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Int4 => Precision::Int4,
            PrecisionName::Int8 => Precision::Int8,
        },
        accuracy_level: args.accuracy_level,
        f32_activations: args.f32_activations.0.clone(),
        lora: args.lora.clone().map_or(default, |name| name.0),
    };
    let exported = export_onnx(&file, &adapters, &options, &args.out)?;
    print(args, &exported, began.elapsed().as_secs_f64());
    Ok(())
}

/// Reads and checks PEFT folders.
pub(super) fn load_adapters(
    folders: &[AdapterFolder],
    spec: &ModelSpec,
) -> anyhow::Result<Vec<NamedAdapter>> {
    let load = |AdapterFolder { name, dir }: &AdapterFolder| {
        let adapter = load_peft(dir, spec)
            .with_context(|| format!("cannot load adapter {name:?} from {}", dir.display()))?;
        Ok(NamedAdapter { name: name.clone(), path: dir.display().to_string(), adapter })
    };
    folders.iter().map(load).collect()
}

fn print(args: &OnnxArgs, exported: &Exported, seconds: f64) {
    let manifest = &exported.manifest;
    let bytes = manifest.files.values().map(|file| file.bytes).sum();
    println!(
        "{}: {} as {} {}, {}, in {seconds:.1} s",
        args.out.display(),
        manifest.base.name,
        manifest.form,
        manifest.precision,
        show_bytes(bytes),
    );
    for weights in &manifest.weights {
        let loss = if weights.exact {
            "exact".to_owned()
        } else {
            format!("{:.2} % lost (Frobenius norm)", 100.0 * weights.relative_error)
        };
        let (from, to) = (&weights.from, &weights.to);
        println!("  {:>4} matrices  {from} -> {to}: {loss}", weights.matrices);
    }
    for (name, adapter) in &manifest.adapters {
        let place = match (&adapter.file, manifest.lora) {
            (Some(file), _) => file.as_str(),
            (None, Lora::Merged) => "merged into the weights",
            (None, Lora::Inputs | Lora::None) => "not in the folder",
        };
        println!("  adapter {name}: {place} (generation {})", &adapter.generation[..12]);
    }
    println!("check it: pleach verify onnx {}", args.out.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_adapters() {
        let parse = |text: &str| text.parse::<LoraName>().map(|name| name.0);
        assert_eq!(parse("inputs"), Ok(LoraExport::Inputs));
        assert_eq!(parse("none"), Ok(LoraExport::None));
        assert_eq!(parse("merged:a"), Ok(LoraExport::Merged("a".to_owned())));
        assert!(parse("merged:").is_err() && parse("merged").is_err() && parse("").is_err());
    }

    #[test]
    fn modules_by_name() {
        let parse = |text: &str| text.parse::<Modules>();
        let some = BTreeSet::from([TargetModule::VProj, TargetModule::OProj]);
        assert_eq!(parse("o_proj,v_proj"), Ok(Modules(some)));
        assert_eq!(parse("none"), Ok(Modules(BTreeSet::new())));
        for text in ["", "v_proj,", "lm_head", "none,v_proj"] {
            assert!(parse(text).is_err_and(|error| error.contains("q_proj")), "{text}");
        }
    }

    #[test]
    fn names_and_folders() {
        let parse = |text: &str| text.parse::<AdapterFolder>();
        let folder = AdapterFolder { name: "a".to_owned(), dir: "b=c".into() };
        assert_eq!(parse("a=b=c"), Ok(folder));
        assert!(parse("a").is_err() && parse("=b").is_err() && parse("a=").is_err());
    }
}
