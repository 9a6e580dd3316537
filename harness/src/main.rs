//! The command `crashtest`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use crashtest::cli::Cli;
use crashtest::commands;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        let _ = writeln!(
            std::io::stderr(),
            "error: crashtest itself failed at {place}: {what}\n  help: please report this, with the command line"
        );
    }));
    match commands::dispatch(Cli::parse()) {
        Ok(status) => status.into(),
        Err(error) => {
            // If stderr is closed, the exit status alone says that something went wrong.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            error.status.into()
        }
    }
}
