//! Models and adapters that cannot be served: the program ends with an error that names the file and what is wrong.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::{
    program::{Run, program, run, scratch_folder},
    random_adapter::RandomAdapter,
    server::serve,
};

/// Ends with exit code 1, with all of `parts` in the message, and without a panic.
fn assert_refused(run: &Run, parts: &[&str]) {
    assert_eq!(run.code, Some(1), "{run:?}");
    for part in parts {
        assert!(run.err.contains(part), "no {part:?} in: {}", run.err);
    }
    assert!(run.err.contains("error: ") && !run.err.contains("panicked"), "{}", run.err);
}

/// A copy of the default model that `spoil` changes.
fn spoiled_model(folder: &Path, spoil: impl FnOnce(&fs::File)) -> PathBuf {
    let path = folder.join("spoiled.gguf");
    fs::copy(pleach_test_setup::default_model(), &path).unwrap();
    // The original may be read-only.
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(&path, permissions).unwrap();
    spoil(&OpenOptions::new().read(true).write(true).open(&path).unwrap());
    path
}

fn serve_model(path: &Path) -> Run {
    let home = scratch_folder();
    let mut serve = program();
    run(
        serve.env("PLEACH_HOME", home.path()).args(["serve", "--port", "0", "--model"]).arg(path),
        "",
    )
}

fn serve_adapter(folder: &Path) -> Run {
    let home = scratch_folder();
    run(&mut serve(home.path(), &["--adapter", &format!("broken={}", folder.display())]), "")
}

#[test]
fn a_truncated_model() {
    let folder = scratch_folder();
    let path = spoiled_model(folder.path(), |file| file.set_len(50_000_000).unwrap());
    assert_refused(&serve_model(&path), &["spoiled.gguf", "tensor \"blk."]);
    let path = spoiled_model(folder.path(), |file| file.set_len(1000).unwrap());
    assert_refused(&serve_model(&path), &["spoiled.gguf", "file ends inside"]);
}

#[test]
fn a_corrupt_model() {
    let folder = scratch_folder();
    let path = spoiled_model(folder.path(), |file| file.write_all_at(b"FUGG", 0).unwrap());
    assert_refused(&serve_model(&path), &["spoiled.gguf", "not a GGUF file"]);
    // The number of tensors is at byte 8.
    let huge = u64::MAX.to_le_bytes();
    let path = spoiled_model(folder.path(), |file| file.write_all_at(&huge, 8).unwrap());
    assert_refused(&serve_model(&path), &["spoiled.gguf", "too many tensors"]);
    // A tensor's entry is its name, number of dimensions, dimensions, type, and the offset of its data.
    let name = b"blk.3.attn_q.weight";
    let path = spoiled_model(folder.path(), |file| {
        let mut head = vec![0; 4 << 20];
        file.read_exact_at(&mut head, 0).unwrap();
        let at = head.windows(name.len()).position(|window| window == name).unwrap();
        let offset_at = at + name.len() + 4 + 2 * 8 + 4;
        file.write_all_at(&(1_u64 << 40).to_le_bytes(), offset_at as u64).unwrap();
    });
    assert_refused(&serve_model(&path), &["spoiled.gguf", "blk.3.attn_q.weight"]);
}

#[test]
fn a_model_that_is_not_there() {
    let run = serve_model(Path::new("no/such/model.gguf"));
    assert_refused(&run, &["no/such/model.gguf"]);
}

#[test]
fn an_adapter_of_another_model() {
    let folder = scratch_folder();
    RandomAdapter { extra_inputs: 64, ..RandomAdapter::default() }.write(folder.path());
    let parts = ["broken", "layers.", "lora_A", "[4, 640]", "[4, 576]"];
    assert_refused(&serve_adapter(folder.path()), &parts);
}

#[test]
fn adapters_that_are_spoiled_or_ask_for_more() {
    let folder = scratch_folder();
    let adapter = RandomAdapter { n_modules: 1, ..RandomAdapter::default() };
    adapter.write(folder.path());
    let weights = folder.path().join("adapter_model.safetensors");
    let config = folder.path().join("adapter_config.json");

    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    assert_refused(&serve_adapter(folder.path()), &["broken", "adapter_model.safetensors"]);
    let mut huge_head = whole;
    huge_head[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&weights, &huge_head).unwrap();
    assert_refused(&serve_adapter(folder.path()), &["broken", "adapter_model.safetensors"]);

    adapter.write(folder.path());
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replacen('{', "{\"use_dora\": true, ", 1)).unwrap();
    assert_refused(&serve_adapter(folder.path()), &["broken", "lora_magnitude_vector"]);
    fs::write(&config, text.replacen("\"LORA\"", "\"IA3\"", 1)).unwrap();
    assert_refused(&serve_adapter(folder.path()), &["broken", "IA3"]);
    fs::remove_file(&config).unwrap();
    assert_refused(&serve_adapter(folder.path()), &["broken", "adapter_config.json"]);
}
