//! Everything this program says goes through here: results to stdout, everything else to stderr.

use indicatif::{ProgressBar, ProgressStyle};
use mobilediffusion_model::{Phase, Progress};
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

/// A bar on stderr (hidden where that is no terminal), and the time each phase took.
#[derive(Debug)]
pub(crate) struct Clock {
    bar: ProgressBar,
    last: Instant,
    spent: Vec<(Phase, Duration)>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let style = ProgressStyle::with_template("{msg:8} {bar:40} {pos}/{len}").expect("the template is right");
        let bar = ProgressBar::no_length().with_style(style);
        Self { bar, last: Instant::now(), spent: Vec::new() }
    }

    /// Shows `progress`; the time since the last one belongs to its phase.
    pub(crate) fn tick(&mut self, progress: Progress) {
        self.charge(progress.phase);
        if self.bar.message() != progress.phase.to_string() {
            self.bar.set_message(progress.phase.to_string());
        }
        self.bar.set_length(progress.total as u64);
        self.bar.set_position(progress.step as u64);
    }

    /// Ends a stretch of work: the time since the last progress belongs to `phase`, and the bar goes away.
    pub(crate) fn pause(&mut self, phase: Phase) {
        self.charge(phase);
        self.bar.finish_and_clear();
        self.bar.reset();
    }

    fn charge(&mut self, phase: Phase) {
        let passed = self.last.elapsed();
        self.last += passed;
        match self.spent.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, spent)) => *spent += passed,
            None => self.spent.push((phase, passed)),
        }
    }

    /// `load 0.41 s, encode 0.02 s, ...`
    pub(crate) fn times(&self) -> String {
        let part = |(phase, spent): &(Phase, Duration)| format!("{phase} {:.2} s", spent.as_secs_f64());
        self.spent.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}
