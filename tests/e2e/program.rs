//! Runs of the program that end by themselves.

use std::{
    io::Write as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Longer than any run should take on a busy machine.
const RUN_TIME_MAX: Duration = Duration::from_mins(6);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The program, with nothing of this process's own settings.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PLEACH_")) {
            command.env_remove(name);
        }
    }
    command
}

/// A folder for one test, on the file system that the default model is on, so that it can be linked.
pub(crate) fn scratch_folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs `command` to its end with `input` on standard input.
///
/// # Panics
/// When it does not end.
pub(crate) fn run(command: &mut Command, input: &str) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that ends without reading its input is right too.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let collect = |pipe: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || std::io::read_to_string(pipe).unwrap())
    };
    let out = collect(Box::new(child.stdout.take().unwrap()));
    let err = collect(Box::new(child.stderr.take().unwrap()));
    let code = wait(&mut child, RUN_TIME_MAX);
    Run { code, out: out.join().unwrap(), err: err.join().unwrap() }
}

/// The exit code of `child`; `None` when a signal ended it.
///
/// # Panics
/// When it does not end in time; it is killed then.
pub(crate) fn wait(child: &mut Child, time_max: Duration) -> Option<i32> {
    let deadline = Instant::now() + time_max;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the program did not end within {time_max:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
