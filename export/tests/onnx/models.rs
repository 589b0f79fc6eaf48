//! Every tiny model: all architectures, `RoPE` scalings and block formats.

use pleach_engine::{model::read_spec, site::TargetModule};
use pleach_export::{ExportOptions, Form, Precision, verify::Limit};

use crate::support::{exported_and_verified, fixtures, options, tiny, told};

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures().join("models")).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.extension()? == "gguf")
            .then(|| path.file_stem().unwrap().to_string_lossy().into_owned())
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    assert!(names.len() >= 26, "models are missing: {names:?}");
    names
}

fn check(form: Form, precision: Precision) {
    for name in names() {
        let (_dir, report) =
            exported_and_verified(&tiny(&name), &[], &options(form, precision), false);
        assert_eq!(report.checks.len(), 4, "{name}");
        // Random weights of layers do not survive 4 bits; they must still be numbers.
        let is_crude = |w: &pleach_export::WeightsWritten| !w.exact && w.to.starts_with("int4");
        if report.weights.iter().any(is_crude) {
            assert!(report.checks.iter().all(|check| check.logit_max < 10.0), "{}", told(&report));
        } else {
            assert!(report.passed, "{name} {form} {precision}:\n{}", told(&report));
        }
        // What has codes in the file keeps them.
        let has_floats = report.weights.iter().any(|w| matches!(&*w.from, "F32" | "F16" | "BF16"));
        let is_exact = report.weights.iter().all(|weights| weights.exact);
        assert!(
            is_exact || (has_floats && precision != Precision::F32),
            "{name}: {:?}",
            report.weights
        );
        let limits = report.checks.iter().map(|check| check.limit);
        assert!(limits.into_iter().all(|limit| is_exact == (limit == Limit::LogitMax(1e-3))));
    }
}

#[test]
fn genai_f32_is_ours() {
    check(Form::Genai, Precision::F32);
}

#[test]
fn standard_f32_is_ours() {
    check(Form::Standard, Precision::F32);
}

#[test]
fn genai_codes_of_every_format_are_exact() {
    check(Form::Genai, Precision::Int4);
    check(Form::Genai, Precision::Int8);
}

#[test]
fn standard_codes_of_every_format_are_exact() {
    check(Form::Standard, Precision::Int4);
    check(Form::Standard, Precision::Int8);
}

/// What is not rounded shows: with every module's activations in f32, codes are exact at accuracy level 4, too, but for
/// the head's.
#[test]
fn activations_of_chosen_modules_are_not_rounded() {
    let file = tiny("llama-plain");
    for form in [Form::Genai, Form::Standard] {
        let with = |modules: &[TargetModule]| {
            let options = ExportOptions {
                accuracy_level: 4,
                f32_activations: modules.iter().copied().collect(),
                ..options(form, Precision::Int8)
            };
            let (_dir, report) = exported_and_verified(&file, &[], &options, false);
            let check = report.checks.iter().find(|check| check.what == "prefill").unwrap();
            let floats = report.weights.iter().filter(|weights| weights.to == "f32");
            (check.kl, floats.map(|weights| weights.matrices).sum::<usize>())
        };
        let (all_rounded, none_float) = with(&[]);
        let (v_kept, v_float) = with(&[TargetModule::VProj]);
        let (all_kept, all_float) = with(&TargetModule::ALL);
        assert!(all_rounded > v_kept && v_kept > all_kept, "{all_rounded} {v_kept} {all_kept}");
        // The genai form has an accuracy level for each product; the standard form has floats instead.
        let layers = read_spec(&file).unwrap().n_layers;
        let expected = if form == Form::Genai { [0, 0] } else { [layers, 7 * layers] };
        assert_eq!([v_float, all_float].map(|n| n - none_float), expected, "{form}");
    }
}
