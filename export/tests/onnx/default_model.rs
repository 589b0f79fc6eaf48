//! The default model with its two trained adapters.

use std::collections::BTreeSet;

use pleach_engine::site::TargetModule;
use pleach_export::{ExportOptions, Form, LoraExport, Precision};

use crate::support::{default_model, exported_and_verified, options, reference_adapters, told};

#[test]
fn f32_is_within_a_thousandth() {
    let file = default_model();
    let adapters = reference_adapters(&file);
    let options =
        ExportOptions { lora: LoraExport::Inputs, ..options(Form::Genai, Precision::F32) };
    let (_dir, report) = exported_and_verified(&file, &adapters, &options, false);
    assert!(report.passed, "{}", told(&report));
    assert_eq!(report.checks.len(), 3 * 4);
}

/// Exact without rounded activations; with them, close, where those of `v_proj` are not rounded.
#[test]
fn int4_is_exact_and_close_with_rounded_activations() {
    let file = default_model();
    let adapters = reference_adapters(&file);
    let options = ExportOptions {
        accuracy_level: 4,
        f32_activations: BTreeSet::from([TargetModule::VProj]),
        lora: LoraExport::Inputs,
        ..options(Form::Genai, Precision::Int4)
    };
    let (_dir, report) = exported_and_verified(&file, &adapters, &options, false);
    assert!(report.passed, "{}", told(&report));
    assert_eq!(report.checks.len(), 3 * 6);
    let rows = |what: &str| report.checks.iter().find(|check| check.what == what).unwrap().rows;
    assert!(rows("prefill") > 500 && rows("prefill, accuracy level 0") > 200, "{}", told(&report));
    let to: Vec<_> =
        report.weights.iter().map(|w| (&*w.from, &*w.to, w.matrices, w.exact)).collect();
    assert_eq!(to, [("Q4_1", "int4 by 32", 210, true), ("Q8_0", "int8 by 32", 1, true)]);
}
