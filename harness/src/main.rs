//! The command `crashtest`.

use std::process::ExitCode;

use clap::Parser;
use crashtest::cli::Cli;
use crashtest::commands;

fn main() -> ExitCode {
    match commands::dispatch(Cli::parse()) {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("error: {error}");
            error.status.into()
        }
    }
}
