//! Compiles the CUDA kernels of `cuda/*.cu`, when nvcc is at hand, and writes `kernels.rs` with the result embedded.
//!
//! `PLEACH_CUDA`: `auto` (default) embeds kernels if nvcc is found, `require` makes its absence an error, `off` skips it.
//! nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, the folder that `tools/fetch-nvcc` makes
//! (`target/nvcc`), and `/usr/local/cuda`. Without it nothing is run and the build stays pure Rust.
//!
//! Each file becomes one fatbin: machine code for `sm_80` and `sm_90a`, and PTX for `compute_90`, from which the driver
//! compiles for later GPUs. What ptxas says of every kernel is read: a spill or a stack frame fails the build unless
//! `cuda/resources.txt` allows it. A fatbin is kept as long as its sources, flags and compiler stay the same.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

#[path = "build/ptxas.rs"]
mod ptxas;

use ptxas::{Resources, check_resources, read_ptxas};

/// Oldest compiler that knows `sm_90a` and everything that the kernels use.
const NVCC_VERSION_MIN: (u32, u32) = (12, 4);

const FLAGS: &[&str] = &[
    "-O3",
    "-std=c++17",
    "--fatbin",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
    "-Xptxas=-v",
];

const HOW_TO_GET_NVCC: &str = "tools/fetch-nvcc puts one into target/nvcc (Linux; no GPU, driver or root needed), or \
     install a CUDA toolkit and put nvcc on PATH; PLEACH_CUDA=off builds without kernels";

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(pleach_kernels)");
    for name in ["PLEACH_CUDA", "NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let result = Mode::from_env().and_then(|mode| {
        let built = build(mode)?;
        fs::write(out_dir().join("kernels.rs"), built.source())
            .map_err(|e| format!("kernels.rs: {e}"))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // One directive for each line: cargo shows what is on the directive's own line only.
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What `PLEACH_CUDA` asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Auto,
    Require,
    Off,
}

impl Mode {
    fn from_env() -> Result<Self, String> {
        match env::var("PLEACH_CUDA").as_deref() {
            Err(_) | Ok("" | "auto") => Ok(Self::Auto),
            Ok("require") => Ok(Self::Require),
            Ok("off") => Ok(Self::Off),
            Ok(other) => Err(format!("PLEACH_CUDA={other}: one of auto, require, off")),
        }
    }

    /// Goes on without kernels, or not.
    fn without_kernels(self, why: &str) -> Result<Built, String> {
        if self == Self::Require {
            return Err(format!("PLEACH_CUDA=require: {why}\n{HOW_TO_GET_NVCC}"));
        }
        Ok(Built::default())
    }
}

/// All that goes into `kernels.rs`.
#[derive(Default)]
struct Built {
    compiler: Option<String>,
    /// Names of the fatbins in the output folder, without their extension.
    fatbins: Vec<String>,
    /// By (kernel, architecture).
    kernels: BTreeMap<(String, String), Resources>,
}

impl Built {
    fn source(&self) -> String {
        let mut text = String::from("// Written by build.rs.\n");
        let _ = writeln!(text, "/// The compiler of the kernels, if there are any.");
        let _ = writeln!(text, "pub static COMPILER: Option<&str> = {:?};", self.compiler);
        let _ = writeln!(text, "/// Name and bytes of every fatbin: one for each `.cu` file.");
        let _ = writeln!(text, "pub static FATBINS: &[(&str, &[u8])] = &[");
        for name in &self.fatbins {
            let path = format!("/{name}.fatbin");
            let _ = writeln!(
                text,
                "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), {path:?}))),"
            );
        }
        let _ = writeln!(
            text,
            "];\n/// What ptxas says of every kernel on every architecture, sorted."
        );
        let _ = writeln!(text, "pub static KERNELS: &[KernelResources] = &[");
        for ((kernel, arch), r) in &self.kernels {
            let _ = writeln!(
                text,
                "    KernelResources {{ kernel: {kernel:?}, arch: {arch:?}, registers: {}, shared_bytes: {} }},",
                r.registers, r.shared_bytes
            );
        }
        text.push_str("];\n");
        text
    }
}

fn build(mode: Mode) -> Result<Built, String> {
    if mode == Mode::Off {
        return Ok(Built::default());
    }
    let Some(nvcc) = find_nvcc()? else {
        // A toolkit installed later changes PATH; once nvcc is known, PATH no longer matters.
        println!("cargo::rerun-if-env-changed=PATH");
        return mode.without_kernels("nvcc was not found");
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());
    println!("cargo::rerun-if-changed=cuda");
    let compiler = match nvcc_version(&nvcc) {
        Ok((version, text)) if version >= NVCC_VERSION_MIN => text,
        Ok((_, text)) => {
            let (major, minor) = NVCC_VERSION_MIN;
            return skip(
                mode,
                &format!("{} is {text}, at least {major}.{minor} is needed", nvcc.display()),
            );
        }
        Err(why) => return skip(mode, &why),
    };

    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?)
            .join("cuda");
    let sources = files_with_extension(&root, "cu")?;
    let mut shared = Vec::new();
    for header in files_with_extension(&root.join("common"), "cuh")?
        .iter()
        .chain(&files_with_extension(&root, "cuh")?)
    {
        shared.extend(read(header)?);
    }
    let job =
        Job { nvcc: &nvcc, compiler: &compiler, root: &root, shared: &shared, out: &out_dir() };
    let logs = match job.compile_all(&sources) {
        Ok(logs) => logs,
        // A compiler that cannot compile anything (no g++, say) is a matter of this machine and not of the kernels.
        Err(errors) => {
            return match job.probe() {
                Ok(()) => Err(errors),
                Err(why) => skip(mode, &format!("{} does not work: {why}", nvcc.display())),
            };
        }
    };
    let mut built = Built { compiler: Some(compiler.clone()), ..Built::default() };
    for (source, log) in sources.iter().zip(logs) {
        built.fatbins.push(stem(source));
        built.kernels.extend(read_ptxas(&log));
    }
    check_resources(&built.kernels, &root.join("resources.txt"))?;
    if built.fatbins.is_empty() {
        return skip(mode, "there are no .cu files");
    }
    println!("cargo::rustc-cfg=pleach_kernels");
    Ok(built)
}

/// Like [`Mode::without_kernels`], and says so: nvcc is here, so kernels were probably wanted.
fn skip(mode: Mode, why: &str) -> Result<Built, String> {
    if mode == Mode::Auto {
        println!(
            "cargo::warning=built without CUDA kernels: {}",
            why.lines().next().unwrap_or(why)
        );
    }
    mode.without_kernels(why)
}

fn find_nvcc() -> Result<Option<PathBuf>, String> {
    if let Some(named) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
        let path = PathBuf::from(&named);
        // A bare name is looked up in PATH, as the shell would.
        let found = if path.components().count() == 1 {
            in_path(&named)
        } else {
            Some(path).filter(|p| p.is_file())
        };
        return found.map(Some).ok_or_else(|| format!("NVCC={}: no such file", named.display()));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
    let fetched = out_dir().ancestors().map(|dir| dir.join("nvcc")).collect::<Vec<_>>();
    Ok(homes
        .map(|home| home.join("bin/nvcc"))
        .find(|p| p.is_file())
        .or_else(|| in_path(OsStr::new("nvcc")))
        .or_else(|| fetched.iter().map(|dir| dir.join("bin/nvcc")).find(|p| p.is_file()))
        .or_else(|| Some(PathBuf::from("/usr/local/cuda/bin/nvcc")).filter(|p| p.is_file())))
}

fn in_path(name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}

fn nvcc_version(nvcc: &Path) -> Result<((u32, u32), String), String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .output()
        .map_err(|e| format!("{} cannot be run: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "Cuda compilation tools, release 13.0, V13.0.88"
    let parsed = text.split("release ").nth(1).and_then(|rest| {
        let (number, rest) = rest.split_once(',')?;
        let (major, minor) = number.trim().split_once('.')?;
        let exact = rest.split_whitespace().next().unwrap_or(number).trim_start_matches('V');
        Some(((major.parse().ok()?, minor.parse().ok()?), format!("nvcc {exact}")))
    });
    parsed.ok_or_else(|| format!("{} --version says no version", nvcc.display()))
}

/// What all compilations have in common.
struct Job<'a> {
    nvcc: &'a Path,
    compiler: &'a str,
    root: &'a Path,
    /// Bytes of all headers: any change compiles everything again.
    shared: &'a [u8],
    out: &'a Path,
}

impl Job<'_> {
    /// Compiles all files, as many at once as cargo allows, and returns what ptxas said of each.
    fn compile_all(&self, sources: &[PathBuf]) -> Result<Vec<String>, String> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_usize);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(BTreeMap::new());
        thread::scope(|scope| {
            for _ in 0..jobs.min(sources.len()) {
                scope.spawn(|| {
                    while let Some((i, source)) = {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        sources.get(i).map(|source| (i, source))
                    } {
                        let result = self.compile(source);
                        results
                            .lock()
                            .expect("no thread panics while it holds the lock")
                            .insert(i, result);
                    }
                });
            }
        });
        let results = results.into_inner().expect("no thread panics while it holds the lock");
        let (mut logs, mut errors) = (Vec::new(), String::new());
        for result in results.into_values() {
            match result {
                Ok(log) => logs.push(log),
                Err(error) => errors.push_str(&error),
            }
        }
        if errors.is_empty() { Ok(logs) } else { Err(errors) }
    }

    /// Compiles one file unless the fatbin of the same text is there; returns what ptxas said.
    fn compile(&self, source: &Path) -> Result<String, String> {
        let fatbin = self.out.join(stem(source)).with_extension("fatbin");
        let log = fatbin.with_extension("ptxas");
        let stamp_file = fatbin.with_extension("stamp");
        let mut hasher = DefaultHasher::new();
        (self.compiler, FLAGS, self.shared, read(source)?).hash(&mut hasher);
        let stamp = format!("{:016x}", hasher.finish());
        if fatbin.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
            return fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()));
        }
        let text =
            self.run(source, &fatbin).map_err(|e| format!("{}:\n{e}\n", source.display()))?;
        for (path, contents) in [(&log, &text), (&stamp_file, &stamp)] {
            fs::write(path, contents).map_err(|e| format!("{}: {e}\n", path.display()))?;
        }
        Ok(text)
    }

    /// Whether the compiler compiles anything at all.
    fn probe(&self) -> Result<(), String> {
        let source = self.out.join("probe.cu");
        fs::write(&source, "extern \"C\" __global__ void probe(float* x) { *x = 1.0f; }\n")
            .map_err(|e| e.to_string())?;
        self.run(&source, &source.with_extension("probe")).map(drop)
    }

    fn run(&self, source: &Path, fatbin: &Path) -> Result<String, String> {
        let output = Command::new(self.nvcc)
            .args(FLAGS)
            .arg("-I")
            .arg(self.root.join("common"))
            .arg("-o")
            .arg(fatbin)
            .arg(source)
            .output()
            .map_err(|e| format!("{} cannot be run: {e}", self.nvcc.display()))?;
        // ptxas writes its report to standard error, nvcc passes some of it to standard output.
        let text = [output.stdout, output.stderr]
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .concat();
        if output.status.success() { Ok(text) } else { Err(text) }
    }
}

fn files_with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.extension() == Some(extension.as_ref()))
        .collect();
    files.sort();
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default())
}
