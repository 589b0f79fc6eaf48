//! Kernels on the CPU, for tests where no GPU is: the `.cu` files, compiled as C++ over an emulator of threads, warps and
//! tensor-core fragments (`cuda/emulator/emulator.hpp`). Needs g++ on x86-64.
#![allow(dead_code, reason = "each test uses a part")]
#![expect(unsafe_code, reason = "compiled kernels are loaded and called")]

use std::{
    ffi::{CString, c_int, c_void},
    path::{Path, PathBuf},
    process::Command,
};

use pleach_engine::cuda::{CudaError, Launch, LaunchSink};

type Run =
    unsafe extern "C" fn(*const c_void, *const u32, u32, u32, *const c_void, usize, c_int) -> c_int;

/// Compiled kernels. Addresses in their parameters are those of host memory. One launch at a time: an emulator's fibers are
/// static variables of a library.
pub(crate) struct Kernels {
    /// One for each `.cu` file: what `dlopen` gave.
    libraries: Vec<*mut c_void>,
    pub(crate) mode: Mode,
}

// SAFETY: the libraries are private to this value (loaded from files that it made), and stay open; no thread owns them.
unsafe impl Send for Kernels {}

/// What must not change a bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Plain,
    /// Threads and warps of a CTA run from the last to the first.
    Reversed,
    /// Two CTAs, or one, do all rows and chunks one after another.
    FewCtas,
}

impl Kernels {
    /// Compiles and loads everything; else says what is missing.
    pub(crate) fn load() -> Result<Self, &'static str> {
        if !cfg!(target_arch = "x86_64") {
            return Err("the emulator of kernels needs x86-64");
        }
        let out = tempfile::tempdir().expect("a temporary folder");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|folder| folder.join("engine/cuda"))
            .find(|folder| folder.is_dir())
            .expect("a crate of the workspace");
        let files: Vec<PathBuf> = std::fs::read_dir(folder)
            .expect("the folder of kernels")
            .map(|file| file.expect("a file of the folder").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .collect();
        let compiled: Vec<Option<PathBuf>> = std::thread::scope(|scope| {
            let jobs: Vec<_> =
                files.iter().map(|file| scope.spawn(|| compile(file, out.path()))).collect();
            jobs.into_iter().map(|job| job.join().expect("a file that compiles")).collect()
        });
        let mut libraries = Vec::new();
        for library in compiled {
            let library = library.ok_or("no g++ to compile the emulator of kernels")?;
            let path =
                CString::new(library.as_os_str().as_encoded_bytes()).expect("paths have no zero");
            // SAFETY: a library that was just compiled; it runs no code when loaded but C++'s initialization.
            let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            assert!(!handle.is_null(), "{} can be loaded", library.display());
            libraries.push(handle);
        }
        Ok(Self { libraries, mode: Mode::Plain })
    }

    /// A kernel, and the emulator of its library.
    fn kernel(&self, name: &str) -> Option<(*const c_void, Run)> {
        let (handle, kernel) =
            self.libraries.iter().find_map(|&handle| Some((handle, symbol(handle, name)?)))?;
        let run = symbol(handle, "emulator_run").expect("every file includes the emulator");
        // SAFETY: this is the signature of `emulator_run`.
        Some((kernel, unsafe { std::mem::transmute::<*const c_void, Run>(run) }))
    }

    fn grid(&self, launch: &Launch<'_>) -> [u32; 3] {
        let (x, y, z) = launch.grid;
        let is_one_of =
            |kernels: &[&str]| kernels.iter().any(|kernel| launch.kernel.starts_with(kernel));
        match self.mode {
            Mode::FewCtas if is_one_of(&["rms_norm", "attention", "sample"]) => [x.min(2), y, 1],
            Mode::FewCtas if is_one_of(&["lora_shrink"]) => [1, y, z],
            Mode::FewCtas if is_one_of(&["embed", "epilogue", "own_head", "rope_store"]) => {
                [x, y.min(2), z]
            }
            Mode::Plain | Mode::Reversed | Mode::FewCtas => [x, y, z],
        }
    }
}

impl LaunchSink for Kernels {
    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        launch.check()?;
        let Some((kernel, run)) = self.kernel(launch.kernel) else {
            return Err(CudaError::UnknownKernel(launch.kernel.to_owned()));
        };
        let grid = self.grid(launch);
        let (params, reversed) = (launch.params, c_int::from(self.mode == Mode::Reversed));
        // SAFETY: `kernel` is of `run`'s library and takes one struct of these bytes (the sizes are asserted on both
        // sides); the addresses in it are of host memory that the test holds.
        let status = unsafe {
            run(
                kernel,
                grid.as_ptr(),
                launch.block,
                launch.shared_bytes,
                params.as_ptr().cast(),
                params.len(),
                reversed,
            )
        };
        assert_eq!(status, 0, "{} of {:?} CTAs of {} threads", launch.kernel, grid, launch.block);
        Ok(())
    }
}

/// The address of a symbol of a library.
fn symbol(handle: *mut c_void, name: &str) -> Option<*const c_void> {
    let name = CString::new(name).expect("names have no zero");
    // SAFETY: `handle` is open and stays so, the name ends with zero.
    let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol.cast_const())
}

/// Compiles one file to a shared library; `None` if there is no compiler.
fn compile(source: &Path, out: &Path) -> Option<PathBuf> {
    let cuda = source.parent().expect("a file of the folder");
    let library = out.join(source.file_name().expect("a file")).with_extension("so");
    let output = Command::new("g++")
        .args([
            "-x",
            "c++",
            "-std=c++17",
            "-O2",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wno-unknown-pragmas",
        ])
        .args(["-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"])
        .args([
            "-I".as_ref(),
            cuda.join("common").as_os_str(),
            "-I".as_ref(),
            cuda.join("emulator").as_os_str(),
        ])
        .args(["-o".as_ref(), library.as_os_str(), source.as_os_str()])
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}
