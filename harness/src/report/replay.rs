//! Shows one replayed trial.
