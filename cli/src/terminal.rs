//! Output of the program: results go to standard output, everything else to standard error.

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use mobilediffusion_model::{Phase, Progress};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Prints lines of a result on standard output. A closed pipe (`| head`) is not an error.
pub(crate) fn result(text: &str) -> io::Result<()> {
    let text = text.split('\n').map(printable).collect::<Vec<_>>().join("\n");
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))),
        written => written,
    }
}

/// Prints a line for the user on standard error. Failures are ignored: there is nowhere left to report them.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(line));
}

/// Joins the lines of a text into one. Messages from drivers may have several, and errors are printed as one.
pub(crate) fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Escapes the characters of a text from an untrusted source on which a terminal would act: control characters, and those
/// that reverse the order of what follows. They are spelt as in JSON, so that JSON stays what it is. Marks of direction
/// that belong to ordinary Arabic and Hebrew texts remain.
pub(crate) fn printable(text: &str) -> String {
    let acts = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let spelled = |c: char| if acts(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(spelled).collect()
}

/// Runs `work` on every item on all threads, with a bar on standard error that counts the items done. The bar is hidden
/// if that is no terminal, and removed at the end.
pub(crate) fn each_with_bar<T: Sync>(title: &str, items: &[T], work: impl Fn(&T) + Sync) {
    let template = "{msg} {bar:32} {pos}/{len}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    let bar = ProgressBar::new(items.len() as u64).with_style(style).with_message(title.to_owned());
    items.par_iter().for_each(|item| {
        work(item);
        bar.inc(1);
    });
    bar.finish_and_clear();
}

/// Progress bar on standard error, hidden if that is no terminal, and a stopwatch for each phase.
#[derive(Debug)]
pub(crate) struct Clock {
    bar: ProgressBar,
    last: Instant,
    spent: Vec<(Phase, Duration)>,
}

impl Clock {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        let template = "{msg:8} {bar:32} {pos}/{len}  {per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let style = style.with_key("per_sec", |state: &ProgressState, w: &mut dyn fmt::Write| {
            // Writing fails only if the terminal is gone.
            let _ = write!(w, "{:.1}/s", state.per_sec());
        });
        let bar = ProgressBar::no_length().with_style(style);
        Self { bar, last: Instant::now(), spent: Vec::new() }
    }

    /// Shows `progress`, and adds the time since the last call to its phase.
    pub(crate) fn tick(&mut self, progress: &Progress) {
        self.charge(progress.phase);
        let title = progress.phase.to_string();
        if self.bar.message() != title {
            // Rate and remaining time are counted anew in each phase.
            self.bar.reset();
            self.bar.set_message(title);
        }
        self.bar.set_length(progress.total as u64);
        self.bar.set_position(progress.step as u64);
    }

    /// Removes the bar.
    pub(crate) fn stop(&self) {
        self.bar.finish_and_clear();
    }

    /// Adds the time since the last call to `phase`.
    fn charge(&mut self, phase: Phase) {
        let passed = self.last.elapsed();
        self.last += passed;
        match self.spent.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, spent)) => *spent += passed,
            None => self.spent.push((phase, passed)),
        }
    }

    /// Returns the seconds spent in each phase, by name.
    pub(crate) fn seconds(&self) -> BTreeMap<String, f64> {
        self.spent.iter().map(|(phase, spent)| (phase.to_string(), spent.as_secs_f64())).collect()
    }

    /// Formats the time spent in each phase: `load 0.41 s, encode 0.02 s, ...`.
    pub(crate) fn times(&self) -> String {
        let part = |(phase, spent): &(Phase, Duration)| format!("{phase} {:.2} s", spent.as_secs_f64());
        self.spent.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}
