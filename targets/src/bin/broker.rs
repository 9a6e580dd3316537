//! A broker for tests: `broker DIRECTORY CASH [MANNERS]...`
//!
//! Prints the address on which it listens, and serves until it is killed. Each of the manners is for one
//! request, the first for the first; then they are good: `good`, `drops-before`, `drops-after`,
//! `delays:MILLISECONDS`, `answers-twice`, `leaves-open`.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crashtest_targets::managed::server::{Manners, Server};

fn manners(text: &str) -> Option<Manners> {
    Some(match text {
        "good" => Manners::Good,
        "drops-before" => Manners::DropsBefore,
        "drops-after" => Manners::DropsAfter,
        "answers-twice" => Manners::AnswersTwice,
        "leaves-open" => Manners::LeavesOpen,
        other => {
            let time = other.strip_prefix("delays:")?.parse().ok()?;
            Manners::Delays(Duration::from_millis(time))
        }
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, cash, rest @ ..] = &arguments[..] else {
        return Err("usage: broker DIRECTORY CASH [MANNERS]...".into());
    };
    let all: Option<Vec<Manners>> = rest.iter().map(|text| manners(text)).collect();
    let all = all.ok_or("unknown manners; see the source")?;
    let server = Server::open(Path::new(directory), cash.parse()?)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    server.serve(&listener, &mut |n| all.get(n).copied().unwrap_or_default())?;
    Ok(())
}
