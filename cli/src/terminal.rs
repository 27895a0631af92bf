//! Everything this program says goes through here: results to stdout, everything else to stderr.

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use mobilediffusion_model::{Phase, Progress};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// A result. A reader that went away (`| head`) is not an error of ours.
pub(crate) fn result(text: &str) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A line for the person at the terminal. If nobody can read it, there is nobody to tell.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Errors are one line, whatever a driver put into them.
pub(crate) fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A text with its control characters spelled out: it may come from anywhere, and a terminal obeys some of them.
pub(crate) fn printable(text: &str) -> String {
    let spelled = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(spelled).collect()
}

/// A bar on stderr (hidden where that is no terminal), and the time each phase took.
#[derive(Debug)]
pub(crate) struct Clock {
    bar: ProgressBar,
    last: Instant,
    spent: Vec<(Phase, Duration)>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let template = "{msg:8} {bar:32} {pos}/{len}  {per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("the template is right");
        let style = style.with_key("per_sec", |state: &ProgressState, w: &mut dyn fmt::Write| {
            // A writer that fails is a terminal that is gone.
            let _ = write!(w, "{:.1}/s", state.per_sec());
        });
        let bar = ProgressBar::no_length().with_style(style);
        Self { bar, last: Instant::now(), spent: Vec::new() }
    }

    /// Shows `progress`; the time since the last one belongs to its phase.
    pub(crate) fn tick(&mut self, progress: &Progress) {
        self.charge(progress.phase);
        let title = progress.phase.to_string();
        if self.bar.message() != title {
            // Rate and remaining time are those of the phase.
            self.bar.reset();
            self.bar.set_message(title);
        }
        self.bar.set_length(progress.total as u64);
        self.bar.set_position(progress.step as u64);
    }

    /// Takes the bar away.
    pub(crate) fn stop(&self) {
        self.bar.finish_and_clear();
    }

    fn charge(&mut self, phase: Phase) {
        let passed = self.last.elapsed();
        self.last += passed;
        match self.spent.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, spent)) => *spent += passed,
            None => self.spent.push((phase, passed)),
        }
    }

    /// Seconds of every phase.
    pub(crate) fn seconds(&self) -> BTreeMap<String, f64> {
        self.spent.iter().map(|(phase, spent)| (phase.to_string(), spent.as_secs_f64())).collect()
    }

    /// `load 0.41 s, encode 0.02 s, ...`
    pub(crate) fn times(&self) -> String {
        let part = |(phase, spent): &(Phase, Duration)| format!("{phase} {:.2} s", spent.as_secs_f64());
        self.spent.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}
