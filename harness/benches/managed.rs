//! What the state manager costs over a durable save of the same state, backups not being due, and how
//! fast damage at rest is tried.
//!
//! `cargo bench -p crashtest --bench managed`. Both saves make the JSON of a state of some 4 KiB; on
//! memory, where each call counts, and in the temporary directory, where an fsync may.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crashtest_targets::managed::state::{Action, Order, State, Status};
use crashtest_targets::managed::{Options, StateManager};
use crashtest_targets::{Disk, Strategy, Version};
use criterion::{Criterion, criterion_group, criterion_main};

/// As many orders as make a state of 4 KiB.
fn orders() -> Vec<Order> {
    let order = |n| Order {
        status: Status::Filled,
        ..Order::new(&format!("order-{n:06}"), "SYM0001", Action::Buy, 10)
    };
    (0..29).map(order).collect()
}

fn saves(c: &mut Criterion) {
    let now: DateTime<Utc> = DateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let places = [("memory", Path::new("/dev/shm").to_owned()), ("disk", std::env::temp_dir())];
    for (name, place) in places {
        let mut group = c.benchmark_group(format!("a save of 4 KiB, {name}"));
        let directory = tempfile::tempdir_in(&place).unwrap();
        let mut state = State { orders: orders(), ..State::new(100_000, "s", now) };
        println!("{} bytes", serde_json::to_vec(&state).unwrap().len());
        let mut number = 0;
        group.bench_function("durable", |bench| {
            bench.iter(|| {
                (number, state.current_balance) = (number + 1, 90_000 + number as i64 % 1000);
                let version = Version { number, json: serde_json::to_vec(&state).unwrap() };
                let mut disk = Disk::default();
                let save =
                    Strategy::Durable.save(&mut disk, directory.path(), &version, &mut |_| {});
                save.unwrap();
            });
        });
        let directory = tempfile::tempdir_in(&place).unwrap();
        let options = Options { clock: Box::new(move || now), ..Options::default() };
        let manager = StateManager::open(directory.path(), options).unwrap();
        manager.update(|managed| *managed = state.clone()).unwrap();
        group.bench_function("managed", |bench| {
            bench.iter(|| {
                number += 1;
                let balance = 90_000 + number as i64 % 1000;
                manager.update(|state| state.current_balance = balance).unwrap();
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(30);
    targets = saves
}
criterion_main!(benches);
