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

/// Largest number of threads that may be asked for. The system would start a million for minutes.
const MOST_THREADS: usize = 1024;

/// Error of a command, printed as one line.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    quiet_mesa();
    let command = Cli::parse().command;
    let done = start_threads().and_then(|()| match command {
        Command::Generate(args) => generate::run(&args),
        Command::Devices => devices::run(),
        Command::Info(args) => info::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Golden(args) => golden::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Completions(args) => completions(args.shell),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let line = terminal::one_line(&failure.to_string());
            terminal::note(&format!("error: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts rayon's threads, as many as the environment asks for. CPU kernels would start them on first use, and panic
/// where the system refuses them.
fn start_threads() -> Result<(), Failure> {
    let names = ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"];
    let set = |name: &'static str| std::env::var_os(name).filter(|value| !value.is_empty()).map(|value| (name, value));
    // The second name is the older one, which rayon reads where the first is not set.
    if let Some((name, value)) = names.into_iter().find_map(set) {
        let value = value.to_string_lossy();
        // Rayon would take any number, and the default for what is none.
        if !value.parse().is_ok_and(|number: usize| number <= MOST_THREADS) {
            let expected = format!("a number from 1 to {MOST_THREADS}, or 0 for as many as there are processors");
            return Err(format!("{name}: expected {expected}, found {value:.40}").into());
        }
    }
    rayon::ThreadPoolBuilder::new().build_global().map_err(|error| format!("cannot start threads: {error}").into())
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
