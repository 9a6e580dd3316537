//! Progress: a bar on a terminal, a quiet line now and then in a log. The only file that knows
//! the progress bar library.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::showing::say;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const QUIET_EVERY: Duration = Duration::from_secs(30);

/// Shows how far a run is.
pub struct Progress {
    shown: Shown,
    total: u64,
    done: u64,
    failed: u64,
    started: Instant,
}

enum Shown {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

impl Progress {
    /// Progress over `total` trials; `quiet` shows nothing.
    #[must_use]
    pub fn new(total: u64, quiet: bool) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            let template = "{bar:30} {pos}/{len} trials  {per_sec}  {eta} left  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            Shown::Bar(bar)
        } else {
            Shown::Lines { last: Instant::now() }
        };
        Self { shown, total, done: 0, failed: 0, started: Instant::now() }
    }

    /// Corrects how many trials there will be.
    pub fn expect(&mut self, total: u64) {
        self.total = total;
        if let Shown::Bar(bar) = &self.shown {
            bar.set_length(total);
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Counts one trial.
    pub fn count(&mut self, failed: bool) {
        self.done += 1;
        self.failed += u64::from(failed);
    }

    /// Shows where it stands; to be called a few times a second.
    pub fn show(&mut self) {
        match &mut self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_position(self.done);
                bar.set_message(format!("{} violations", self.failed));
            }
            Shown::Lines { last } if last.elapsed() >= QUIET_EVERY => {
                *last = Instant::now();
                let seconds = self.started.elapsed().as_secs().max(1);
                let rate = self.done / seconds;
                let left = self.total.saturating_sub(self.done) / rate.max(1);
                // A line that can't be written is no result.
                let _ = say(&format!(
                    "{} of {} trials after {seconds} s, {rate} a second, some {left} s left, {} violations",
                    self.done, self.total, self.failed
                ));
            }
            Shown::Lines { .. } => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}
