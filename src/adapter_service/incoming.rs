//! Our own copies of what comes by path: what is registered is what was checked, whatever its folder holds later.

use std::{fs::File, io::Read as _, path::Path};

use pleach_adapters::peft::{ADAPTER_CONFIG_BYTES_MAX, CONFIG_FILE, TENSOR_FILE};
use pleach_store::{RemoteFile, RemoteFolder, RemotePath};
use tokio::runtime::Handle;

use super::{
    error::ServiceError,
    roots::{AllowedRoots, Place},
    spool::{IncomingFile, Spool, SpoolFolder},
};

/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Copies the adapter that a client names by its path. Blocks.
pub(super) fn copy_adapter(
    roots: &AllowedRoots,
    path: &str,
    spool: &Spool,
    tensor_bytes_max: u64,
) -> Result<SpoolFolder, ServiceError> {
    let place = roots.find(path)?;
    let to = spool.folder()?;
    match place {
        Place::Folder(from) => {
            for (name, bytes_max) in files(tensor_bytes_max) {
                // What is missing is not copied; loading the copy says so by name.
                if let Some(file) = roots.file(&from, name)? {
                    copy_file(&file, name, &to, bytes_max)?;
                }
            }
        }
        Place::Remote(folder, below) => copy_remote(&folder, &below, path, &to, tensor_bytes_max)?,
    }
    Ok(to)
}

/// Copies the files of a folder, wherever they lead. Blocks.
pub(super) fn copy_folder(
    from: &Path,
    to: &SpoolFolder,
    tensor_bytes_max: u64,
) -> Result<(), ServiceError> {
    for (name, bytes_max) in files(tensor_bytes_max) {
        copy_file(&from.join(name), name, to, bytes_max)?;
    }
    Ok(())
}

fn files(tensor_bytes_max: u64) -> [(&'static str, u64); 2] {
    [(CONFIG_FILE, ADAPTER_CONFIG_BYTES_MAX), (TENSOR_FILE, tensor_bytes_max)]
}

fn copy_file(
    from: &Path,
    name: &'static str,
    to: &SpoolFolder,
    bytes_max: u64,
) -> Result<(), ServiceError> {
    // Asked before opening: opening a pipe would wait for its writer. What is strange is not copied; loading says so.
    if !from.metadata()?.is_file() {
        return Ok(std::fs::create_dir(to.path().join(name))?);
    }
    let (mut from, mut file) = (File::open(from)?, to.create(name, bytes_max)?);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write(&mut file, &buffer[..n])?,
        }
    }
}

fn copy_remote(
    folder: &RemoteFolder,
    below: &RemotePath,
    path: &str,
    to: &SpoolFolder,
    tensor_bytes_max: u64,
) -> Result<(), ServiceError> {
    let runtime = Handle::current();
    let failed = |error| {
        tracing::warn!(path, %error, "an adapter cannot be fetched");
        ServiceError::Remote { path: path.to_owned() }
    };
    for (name, bytes_max) in files(tensor_bytes_max) {
        match runtime.block_on(folder.read(below, name)).map_err(failed)? {
            Some(mut from) => {
                let mut file = to.create(name, bytes_max)?;
                let next = |from: &mut RemoteFile| runtime.block_on(from.next()).map_err(failed);
                write_all(|| next(&mut from), to, &mut file)?;
            }
            None if name == CONFIG_FILE => {
                return Err(ServiceError::NoAdapter { path: path.to_owned() });
            }
            None => {}
        }
    }
    Ok(())
}

fn write_all<B: AsRef<[u8]>>(
    mut next: impl FnMut() -> Result<Option<B>, ServiceError>,
    to: &SpoolFolder,
    file: &mut IncomingFile,
) -> Result<(), ServiceError> {
    while let Some(bytes) = next()? {
        to.write(file, bytes.as_ref())?;
    }
    Ok(())
}
