//! Running a program, and keeping what it said for the case that it fails.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write as _},
    process::{Command, Stdio},
};

use crate::error::SetupError;

/// As much of a failed program's output as is worth reading.
const SAID_LINES_MAX: usize = 25;

/// Runs `command`; its standard output. Standard error is passed on line by line while it runs, because a download may
/// take a while. (The test harness holds back only what its own threads print with macros.)
pub(crate) fn run(command: &mut Command, hint: &'static str) -> Result<String, SetupError> {
    let shown = shown(command);
    let start = |source| SetupError::Start { program: shown.clone(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    let errors = child.stderr.take().map(|pipe| std::thread::spawn(move || pass_on(pipe)));
    let mut out = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        // What came before a failed read still tells something.
        let _ = pipe.read_to_end(&mut out);
    }
    let out = String::from_utf8_lossy(&out).into_owned();
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let status = child.wait().map_err(start)?;
    if status.success() {
        return Ok(out);
    }
    // `python3 -m venv` tells its errors on standard output.
    let lines: Vec<_> = out.lines().chain(errors.lines()).collect();
    let said = lines[lines.len().saturating_sub(SAID_LINES_MAX)..].join("\n");
    Err(SetupError::Failed { command: shown, status: status.to_string(), hint, said })
}

/// A command as it would be typed.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn pass_on(pipe: impl Read) -> String {
    let mut all = String::new();
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        // Nobody may be reading; the lines are kept all the same.
        let _ = writeln!(io::stderr(), "{line}");
        all.push_str(&line);
        all.push('\n');
    }
    all
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_command_status_and_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let message = run(&mut command, ": try again").unwrap_err().to_string();
        for part in ["sh -c echo", "3", ": try again", "out\nerr"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(run(Command::new("sh").args(["-c", "echo fine"]), "").unwrap(), "fine\n");
        assert!(matches!(
            run(&mut Command::new("/no/such/program"), ""),
            Err(SetupError::Start { .. })
        ));
    }
}
