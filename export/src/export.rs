//! The export itself: checks first, then a folder that is whole or not there.

use std::{collections::BTreeSet, path::Path};

use pleach_adapters::LoadedAdapter;
use pleach_engine::{
    adapter_weights::AdapterWeights, gguf::GgufFile, model::FileMatrices, site::TargetModule,
};
use pleach_text::{ChatTemplate, Tokenizer, TokenizerSpec};
use prost::Message as _;

use crate::{
    decoder::{self, Form, Plan},
    digest,
    error::ExportError,
    folder::{
        DATA_FILE, ExportedAdapter, ExportedBase, ExportedFile, Lora, MANIFEST_FILE, MODEL_FILE,
        Manifest, PartialFolder, family, genai_config, special_tokens_map, tokenizer_config,
    },
    lora::{slots, write_adapter},
    onnx::{
        DataFile, entry,
        proto::{GraphProto, ModelProto, OperatorSetIdProto},
    },
    weights::Precision,
};

/// What to make.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Operators of the graph.
    pub form: Form,
    /// Of the weights.
    pub precision: Precision,
    /// Of products with blocks of codes: 0 keeps activations in f32, 4 rounds them to int8.
    pub accuracy_level: u8,
    /// Modules whose activations stay in f32 at any accuracy level. Rounding costs most in front of `v_proj`, whose
    /// products are among the cheapest.
    pub f32_activations: BTreeSet<TargetModule>,
    /// What becomes of adapters.
    pub lora: LoraExport,
}

/// What becomes of adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoraExport {
    /// All of them, as optional inputs and a file each.
    Inputs,
    /// This one, in the weights.
    Merged(String),
    /// There are none.
    None,
}

/// An adapter to export.
#[derive(Clone, Debug)]
pub struct NamedAdapter {
    /// Its name.
    pub name: String,
    /// Where its PEFT folder is, for the manifest.
    pub path: String,
    /// Its weights.
    pub adapter: LoadedAdapter,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Exported {
    /// As it lies in the folder.
    pub manifest: Manifest,
}

/// The largest file of a graph that protobuf readers take.
const GRAPH_BYTES_MAX: u64 = i32::MAX as u64;

/// Writes the folder `out`, which is not there yet or empty. It appears when it is whole: whatever fails, a full disk or a
/// missing tensor, nothing of it is left. The weights are read from the mapped file, tensor by tensor.
///
/// # Errors
/// [`ExportError`], naming the adapter, site, tensor or file.
pub fn export_onnx(
    file: &GgufFile,
    adapters: &[NamedAdapter],
    options: &ExportOptions,
    out: &Path,
) -> Result<Exported, ExportError> {
    let base = FileMatrices::open(file)?;
    check(&base, adapters)?;
    let chosen = Chosen::of(adapters, &options.lora)?;
    // What is small and may be refused comes before what is large.
    let tokenizer_spec = TokenizerSpec::from_gguf(file)?;
    let tokenizer = Tokenizer::new(tokenizer_spec.clone())?;
    let spec = base.spec();

    let folder = PartialFolder::create(out)?;
    let exported = ExportedBase {
        name: spec.name.clone(),
        architecture: family(spec.architecture).to_owned(),
        sha256: digest::of_bytes(file.file_bytes()),
        path: absolute(file.path()),
    };
    let Chosen { slots, merged, lora, adapters } = chosen;
    let mut manifest = Manifest::new(options, lora, exported);

    let plan = Plan {
        base: &base,
        form: options.form,
        precision: options.precision,
        accuracy_level: options.accuracy_level,
        f32_activations: &options.f32_activations,
        slots: &slots,
        merged,
    };
    let mut data = DataFile::create(&folder.path().join(DATA_FILE))?;
    let (graph, weights) = decoder::build(plan, &mut data, DATA_FILE)?;
    manifest.weights = weights;
    manifest.add(DATA_FILE, data.finish()?);
    let model = model(graph, &manifest).encode_to_vec();
    if model.len() as u64 > GRAPH_BYTES_MAX {
        let path = out.join(MODEL_FILE);
        let (bytes, format) = (model.len() as u64, "a protobuf message");
        return Err(ExportError::TooLarge { path, bytes, format });
    }
    let write = |manifest: &mut Manifest, name: &str, bytes: &[u8]| {
        folder.write(name, bytes)?;
        manifest.add(name, (bytes.len() as u64, digest::of_bytes(bytes)));
        Ok::<_, ExportError>(())
    };
    write(&mut manifest, MODEL_FILE, &model)?;

    let (config, template) =
        tokenizer_config(file, &tokenizer_spec, spec.architecture, spec.context)?;
    if let Some(template) = template {
        ChatTemplate::from_gguf(file)?;
        write(&mut manifest, "chat_template.jinja", template.as_bytes())?;
    }
    let genai = genai_config(spec, &tokenizer, tokenizer_spec.pad, options.form);
    let tokens = tokenizer_spec.to_tokenizer_json()?;
    let special = special_tokens_map(&tokenizer_spec).into();
    for (name, json) in [
        ("genai_config.json", genai),
        ("tokenizer.json", tokens),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ] {
        write(&mut manifest, name, format!("{json:#}\n").as_bytes())?;
    }
    for named in adapters {
        let NamedAdapter { name, path, adapter } = named;
        let mut exported = ExportedAdapter::new(
            adapter.digest,
            adapter.rank_max,
            &adapter.target_modules,
            absolute(Path::new(path)),
        );
        if lora == Lora::Inputs {
            let place = folder.path().join("adapters");
            std::fs::create_dir_all(&place).map_err(ExportError::io("create", &place))?;
            let file = format!("adapters/{name}.onnx_adapter");
            let written = write_adapter(&folder.path().join(&file), &adapter.weights, spec)?;
            manifest.add(&file, written);
            exported.file = Some(file);
        }
        manifest.adapters.insert(name.clone(), exported);
    }
    folder.write(MANIFEST_FILE, &manifest.to_json()?)?;
    folder.finish()?;
    Ok(Exported { manifest })
}

/// What of the adapters goes where.
struct Chosen<'a> {
    slots: BTreeSet<pleach_engine::site::Site>,
    merged: Option<&'a AdapterWeights>,
    lora: Lora,
    adapters: Vec<&'a NamedAdapter>,
}

impl<'a> Chosen<'a> {
    fn of(adapters: &'a [NamedAdapter], lora: &LoraExport) -> Result<Self, ExportError> {
        let mut chosen =
            Self { slots: BTreeSet::new(), merged: None, lora: Lora::None, adapters: Vec::new() };
        match lora {
            LoraExport::None => {
                if let Some(unused) = adapters.first() {
                    let why = "--lora is none";
                    return Err(ExportError::Unused(unused.name.clone(), why));
                }
            }
            LoraExport::Inputs => {
                let weights = adapters.iter().map(|named| (&*named.name, &named.adapter.weights));
                chosen.slots = slots(weights)?;
                chosen.lora = Lora::Inputs;
                chosen.adapters = adapters.iter().collect();
            }
            LoraExport::Merged(name) => {
                let Some(named) = adapters.iter().find(|named| named.name == *name) else {
                    let known = adapters.iter().map(|named| named.name.clone()).collect();
                    return Err(ExportError::UnknownAdapter { name: name.clone(), known });
                };
                if let Some(unused) = adapters.iter().find(|other| other.name != *name) {
                    let why = "another one is merged";
                    return Err(ExportError::Unused(unused.name.clone(), why));
                }
                chosen.merged = Some(&named.adapter.weights);
                chosen.lora = Lora::Merged;
                chosen.adapters = vec![named];
            }
        }
        Ok(chosen)
    }
}

/// Names and weights.
fn check(base: &FileMatrices, adapters: &[NamedAdapter]) -> Result<(), ExportError> {
    let mut names = BTreeSet::new();
    for NamedAdapter { name, adapter, .. } in adapters {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(is_plain) {
            return Err(ExportError::AdapterName(name.clone()));
        }
        if !names.insert(name) {
            return Err(ExportError::TwiceNamed(name.clone()));
        }
        adapter
            .weights
            .check(base.spec())
            .map_err(|source| ExportError::Adapter { name: name.clone(), source })?;
    }
    Ok(())
}

fn model(graph: GraphProto, manifest: &Manifest) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    let (ir_version, opset_import) = match manifest.form {
        Form::Genai => (10, vec![opset("", 21), opset("com.microsoft", 1)]),
        Form::Standard => (11, vec![opset("", 23)]),
    };
    ModelProto {
        ir_version: Some(ir_version),
        producer_name: Some("pleach".to_owned()),
        producer_version: Some(manifest.pleach.clone()),
        graph: Some(graph),
        opset_import,
        metadata_props: vec![
            entry("pleach.base.name", &manifest.base.name),
            entry("pleach.base.sha256", &manifest.base.sha256),
            entry("pleach.precision", &manifest.precision.to_string()),
        ],
    }
}

impl Manifest {
    fn add(&mut self, name: &str, (bytes, sha256): (u64, String)) {
        self.files.insert(name.to_owned(), ExportedFile { bytes, sha256 });
    }
}

/// As it will be found from elsewhere.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
