//! Fingerprints of file contents that can be changed byte by byte.
//!
//! The fingerprint of a content is the sum of `byte * BASE^offset` over all its bytes, modulo the
//! prime 2^61 - 1. A byte that changes changes one term, so that a million contents that differ
//! by a byte each are told apart in a million steps, whatever their length. Zeros add nothing: a
//! hole is free, and a content is its fingerprint and its length. Two contents that differ have the
//! same fingerprint with a probability of length / 2^61.

/// The modulus.
const PRIME: u64 = (1 << 61) - 1;
/// Some number below the modulus, fixed so that results repeat.
const BASE: u64 = 0x0bad_5eed_1234_5677;

/// The fingerprint of some bytes at some place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

/// A power of the base: the weight of the byte at an offset.
#[derive(Clone, Copy, Debug)]
pub struct Weight(u64);

impl Weight {
    /// The weight of the byte at `offset`.
    #[must_use]
    pub fn at(offset: u64) -> Self {
        let (mut weight, mut square, mut rest) = (1, BASE, offset);
        while rest > 0 {
            if rest & 1 == 1 {
                weight = times(weight, square);
            }
            square = times(square, square);
            rest >>= 1;
        }
        Self(weight)
    }

    /// The weight of the byte after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(times(self.0, BASE))
    }
}

impl Fingerprint {
    /// Of `bytes` that begin at `offset` of their file.
    #[must_use]
    pub fn of(offset: u64, bytes: &[u8]) -> Self {
        let (mut sum, mut weight) = (Self::default(), Weight::at(offset));
        for byte in bytes {
            sum.change(0, *byte, weight);
            weight = weight.next();
        }
        sum
    }

    /// Replaces the byte of this weight.
    pub fn change(&mut self, old: u8, new: u8, weight: Weight) {
        let difference = PRIME + u64::from(new) - u64::from(old);
        self.0 = reduced(self.0 + times(reduced(difference), weight.0));
    }

    /// Both together, of different places.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(reduced(self.0 + other.0))
    }

    /// This without a part of it.
    #[must_use]
    pub fn minus(self, part: Self) -> Self {
        Self(reduced(self.0 + PRIME - part.0))
    }
}

fn times(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    // Both halves are below 2^64: a product of two numbers below 2^61 is below 2^122.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let (low, high) = ((product as u64) & PRIME, (product >> 61) as u64);
    reduced(low + high)
}

fn reduced(sum: u64) -> u64 {
    if sum >= PRIME { sum - PRIME } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_gives_what_the_changed_bytes_give() {
        let (mut bytes, mut sum) = (vec![7_u8; 300], Fingerprint::of(1000, &[7; 300]));
        for (place, new) in [(0, 9), (299, 0), (150, 255), (150, 7)] {
            sum.change(bytes[place], new, Weight::at(1000 + place as u64));
            bytes[place] = new;
            assert_eq!(sum, Fingerprint::of(1000, &bytes));
        }
    }

    #[test]
    fn parts_add_up_and_zeros_count_for_nothing() {
        let whole = Fingerprint::of(0, b"abc\0\0def");
        let (head, tail) = (Fingerprint::of(0, b"abc"), Fingerprint::of(5, b"def"));
        assert_eq!(whole, head.plus(tail));
        assert_eq!(whole.minus(tail), head);
        assert_ne!(Fingerprint::of(0, b"ab"), Fingerprint::of(0, b"ba"));
    }
}
