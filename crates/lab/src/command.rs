//! How is an external program run, so that its failure says what it printed?

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use crate::Error;

/// How much of a program's output goes into an error, in bytes.
const SHOWN: usize = 2_000;

/// A command inside a network namespace. It is entered by nsenter, not `ip netns exec`: that one remounts /sys.
pub fn inside(netns: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).arg("--").arg(program);
    command
}

/// Runs the command to its end, feeds it `input`, and gives what it printed; a bad exit is an error with the
/// end of its output.
pub fn run(command: &mut Command, input: Option<&str>) -> Result<String, Error> {
    let output = output(command, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(command, &output))
}

/// Runs the command to its end, whatever its exit.
pub fn output(command: &mut Command, input: Option<&str>) -> Result<Output, Error> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let program = line(command, 1);
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Spawn { program: program.clone(), source })?;
    let pipe = child.stdin.take();
    thread::scope(|scope| {
        if let (Some(mut pipe), Some(input)) = (pipe, input) {
            // A program that ends early closes the pipe; its exit tells more than the failed write.
            scope.spawn(move || drop(pipe.write_all(input.as_bytes())));
        }
        child.wait_with_output()
    })
    .map_err(|source| Error::Spawn { program, source })
}

/// The error that tells what the command printed.
pub fn failure(command: &Command, output: &Output) -> Error {
    let mut printed = String::from_utf8_lossy(&output.stderr).into_owned();
    printed.push_str(&String::from_utf8_lossy(&output.stdout));
    Error::Command {
        command: line(command, 8),
        status: output.status.to_string(),
        output: tail(printed.trim(), SHOWN).to_owned(),
    }
}

/// The last `bytes` of a text, from a character's border.
pub fn tail(text: &str, bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or_default()
}

fn line(command: &Command, words: usize) -> String {
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    let mut line: Vec<_> =
        std::iter::once(command.get_program().to_string_lossy()).chain(arguments).collect();
    line.truncate(words.max(1));
    line.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_told_with_what_it_printed() {
        let error = run(Command::new("sh").args(["-c", "echo no such table >&2; exit 3"]), None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such table") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_long_input_reaches_the_program_whole() {
        let input = "x".repeat(300_000);
        assert_eq!(run(&mut Command::new("cat"), Some(&input)).unwrap().len(), 300_000);
    }
}
