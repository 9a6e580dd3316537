# The usual commands; `just` lists them. .ci/run is what must hold for every change.

# List the recipes
default:
    @just --list

# All tests; what the machine lacks is skipped with its reason
test *ARGS:
    cargo test --workspace --locked {{ARGS}}

# Format and lint, as CI does
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy -p crashtest --no-default-features --locked -- -D warnings
    cargo clippy -p crashtest-targets --all-targets --all-features --locked -- -D warnings
    rustfmt --check --edition 2024 targets/rust/*.rs
    shellcheck -x .ci/run ci/nightly ci/slurm.sh ci/as-ordinary-user results/publish python/tests/run targets/shell/*.sh

# A scenario on the built-in strategies: just run --scenario all
run *ARGS="--scenario sigkill":
    cargo run --release --locked -- run {{ARGS}}

# An audit: just audit -- python3 mybot.py
audit *ARGS="--strategy unsafe":
    cargo run --release --locked -- audit {{ARGS}}

# Measurements: just bench --bench power
bench *ARGS:
    cargo bench -p crashtest --locked {{ARGS}}

# A report of every scenario, opened in Chromium with all its controls used
browser:
    cargo run --release --locked -- run --scenario all --seed 1 --quiet --html target/report.html
    cd harness/tests/browser && npm ci && node report.mjs ../../../target/report.html

# The Python package: built, installed where nothing else is, and tested there
python:
    python/tests/run

# The published tables anew; just tables --check only tries
tables *ARGS:
    results/publish {{ARGS}}

# What must hold for every change
ci:
    .ci/run
