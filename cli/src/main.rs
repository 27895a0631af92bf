//! Command-line program of MobileDiffusion: parses arguments, calls the library crates and prints results.

mod args;
mod bench;
mod check;
mod compile;
mod device;
mod devices;
mod generate;
mod golden;
mod graphs;
mod info;
mod output;
mod plan;
mod show;
mod terminal;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::error::Error;
use std::process::ExitCode;

/// Error of a command, printed as one line.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    quiet_mesa();
    let command = Cli::parse().command;
    // CPU kernels would start rayon's threads on first use, and panic where the system refuses them.
    if let Err(error) = rayon::ThreadPoolBuilder::new().build_global() {
        terminal::note(&format!("error: cannot start threads: {error}"));
        return ExitCode::FAILURE;
    }
    let done = match command {
        Command::Generate(args) => generate::run(&args),
        Command::Devices => devices::run(),
        Command::Info(args) => info::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Golden(args) => golden::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Completions(args) => completions(args.shell),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let line = terminal::one_line(&failure.to_string());
            terminal::note(&format!("error: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a completion script for a shell.
fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
    Ok(terminal::result(String::from_utf8(script)?.trim_end())?)
}

/// Turns off Mesa's device-selection layer. On machines without a desktop session it writes an `error:` line to
/// standard error whenever adapters are listed, and this program chooses its adapter by itself.
#[expect(unsafe_code, reason = "changing the environment is unsafe while other threads may read it")]
fn quiet_mesa() {
    // SAFETY: called first in `main`, before any other thread exists.
    unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
}
