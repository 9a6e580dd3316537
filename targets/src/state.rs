//! The state that the built-in strategies save: that of a small trading bot.

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// The smallest state that [`BotState::sample`] makes, in bytes of JSON.
pub const STATE_BYTES_MIN: usize = 1024;
/// The largest state that [`BotState::sample`] makes, in bytes of JSON.
pub const STATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a trading bot must not lose between two runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BotState {
    /// Counts the saves; 0 is the state before the first one.
    pub version: u64,
    /// When the state was made, RFC 3339 in UTC.
    pub saved_at: String,
    /// Digest of the settings that the state belongs to.
    pub settings_hash: String,
    /// Cash, in cents.
    pub current_balance: i64,
    /// The highest `current_balance` so far, in cents.
    pub peak_balance: i64,
    /// What is held.
    pub positions: Vec<Position>,
    /// What was sent to the broker and is not yet settled.
    pub open_orders: Vec<Order>,
    /// Free text; fills the state up to the size that was asked for.
    pub memo: String,
}

/// A state ready to be saved.
///
/// A program makes its JSON just before it saves. The harness makes it long before, because a
/// child that is killed after one save would spend more time on this than on all else.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    /// [`BotState::version`].
    pub number: u64,
    /// The state as JSON.
    pub json: Vec<u8>,
}

impl From<&BotState> for Version {
    fn from(state: &BotState) -> Self {
        Self { number: state.version, json: state.to_json() }
    }
}

/// A holding of one symbol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// What is held.
    pub symbol: String,
    /// How many.
    pub quantity: i64,
    /// Price paid for one, in cents.
    pub entry_price: i64,
}

/// An order at the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Chosen by the client, unique for ever.
    pub id: String,
    /// What is traded.
    pub symbol: String,
    /// How many; negative to sell.
    pub quantity: i64,
}

/// When a version is saved: five minutes after the one before.
pub(crate) fn time_of(version: u64) -> DateTime<Utc> {
    let minutes = 5 * i64::try_from(version % 1_000_000).unwrap_or(0);
    DateTime::UNIX_EPOCH + Duration::days(20_000) + Duration::minutes(minutes)
}

impl BotState {
    /// A plausible state, the same for the same arguments.
    ///
    /// Its JSON is `size_bytes` long (clamped to [`STATE_BYTES_MIN`]..=[`STATE_BYTES_MAX`]) when
    /// `version` is even and 96 bytes less when it is odd: neighbours differ in length, so that an
    /// overwrite without truncation shows.
    #[must_use]
    pub fn sample(version: u64, size_bytes: usize) -> Self {
        let size_bytes = size_bytes.clamp(STATE_BYTES_MIN, STATE_BYTES_MAX);
        let target = size_bytes - if version % 2 == 1 { 96 } else { 0 };
        let earned = i64::try_from(version % 1_000_000).unwrap_or(0) * 137;
        let entries = (target / 8 / ENTRY_BYTES).min(1000);
        let mut state = Self {
            version,
            saved_at: time_of(version).to_rfc3339_opts(SecondsFormat::Secs, true),
            settings_hash: "5c1f3a0e9b7d4268".to_owned(),
            current_balance: 1_000_000 + earned,
            peak_balance: 1_000_000 + earned,
            positions: (0..entries).map(|n| Position::sample(version, n)).collect(),
            open_orders: (0..entries).map(|n| Order::sample(version, n)).collect(),
            memo: String::new(),
        };
        let missing = target.saturating_sub(state.to_json().len());
        state.memo = filler(version, missing);
        state
    }

    /// The state as JSON, in one line.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let entries = self.positions.len() + self.open_orders.len();
        let mut json =
            Vec::with_capacity(FIXED_BYTES + entries * ENTRY_BYTES_MAX + self.memo.len());
        // Writing to memory can't fail, and the state has no map with keys that are no strings.
        let _ = serde_json::to_writer(&mut json, self);
        json
    }
}

/// What a state takes as JSON without its entries and its memo, at most.
const FIXED_BYTES: usize = 256;
/// What one entry takes, at most.
const ENTRY_BYTES_MAX: usize = 72;
/// Roughly what one position, or one order, takes as JSON.
const ENTRY_BYTES: usize = 56;

impl Position {
    fn sample(version: u64, n: usize) -> Self {
        Self {
            symbol: format!("SYM{:04}", n % 10_000),
            quantity: 10 + i64::try_from((version + n as u64) % 90).unwrap_or(0),
            entry_price: 1000 + i64::try_from((version * 7 + n as u64) % 9000).unwrap_or(0),
        }
    }
}

impl Order {
    fn sample(version: u64, n: usize) -> Self {
        Self {
            id: format!("order-{version:06}-{n:04}"),
            symbol: format!("SYM{:04}", n % 10_000),
            quantity: 1 + i64::try_from(n % 9).unwrap_or(0),
        }
    }
}

/// `length` letters that differ from version to version at every place.
fn filler(version: u64, length: usize) -> String {
    (0..length)
        .map(|n| char::from(b'a' + u8::try_from((n as u64 + version) % 26).unwrap_or(0)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_size_that_was_asked_for() {
        for size in [1024, 4096, 100_000, 1 << 20] {
            assert_eq!(BotState::sample(2, size).to_json().len(), size);
            assert_eq!(BotState::sample(3, size).to_json().len(), size - 96);
        }
    }

    #[test]
    fn a_sample_survives_its_json() {
        let state = BotState::sample(7, 8192);
        let back: BotState = serde_json::from_slice(&state.to_json()).unwrap();
        assert_eq!(state, back);
    }
}
