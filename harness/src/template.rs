//! JSON that is the same in every run but for some values: times, process ids, random ids.
//!
//! A template is learned from the same version of two unbroken runs. Where both agree the value is
//! fixed; where they differ only the type is.

use serde_json::Value;

/// A JSON value in which some scalars may be anything of their type.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// This value.
    Fixed(Value),
    /// Any value of the same type as these, but the same wherever both runs had the same.
    Volatile {
        /// The value in the first run.
        one: Value,
        /// The value in the second run.
        other: Value,
    },
    /// An array of this length.
    Array(Vec<Template>),
    /// An object with exactly these keys.
    Object(Vec<(String, Template)>),
}

impl Template {
    /// Learns from two runs; `None` when they differ in shape or are not JSON.
    #[must_use]
    pub fn learn(one: &[u8], other: &[u8]) -> Option<Self> {
        let one = serde_json::from_slice(one).ok()?;
        let other = serde_json::from_slice(other).ok()?;
        Self::between(one, other)
    }

    fn between(one: Value, other: Value) -> Option<Self> {
        if one == other {
            return Some(Self::Fixed(one));
        }
        match (one, other) {
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                let pairs = one.into_iter().zip(other);
                pairs.map(|(a, b)| Self::between(a, b)).collect::<Option<_>>().map(Self::Array)
            }
            (Value::Object(one), Value::Object(mut other)) if one.len() == other.len() => one
                .into_iter()
                .map(|(key, a)| {
                    let b = other.remove(&key)?;
                    Some((key, Self::between(a, b)?))
                })
                .collect::<Option<_>>()
                .map(Self::Object),
            (one, other) if is_scalar(&one) && same_type(&one, &other) => {
                Some(Self::Volatile { one, other })
            }
            _ => None,
        }
    }

    /// Whether `bytes` are JSON that fits.
    #[must_use]
    pub fn fits(&self, bytes: &[u8]) -> bool {
        serde_json::from_slice(bytes).is_ok_and(|value| self.fits_value(&value, &mut Bound::new()))
    }

    fn fits_value<'a>(&'a self, value: &'a Value, bound: &mut Bound<'a>) -> bool {
        match (self, value) {
            (Self::Fixed(fixed), value) => fixed == value,
            (Self::Volatile { one, other }, value) => {
                let same = bound.iter().find(|((a, b), _)| *a == one && *b == other);
                match same {
                    Some((_, before)) => *before == value,
                    None => {
                        bound.push(((one, other), value));
                        same_type(one, value)
                    }
                }
            }
            (Self::Array(items), Value::Array(values)) => {
                items.len() == values.len()
                    && items.iter().zip(values).all(|(item, value)| item.fits_value(value, bound))
            }
            (Self::Object(entries), Value::Object(values)) => {
                entries.len() == values.len()
                    && entries.iter().all(|(key, entry)| {
                        values.get(key).is_some_and(|value| entry.fits_value(value, bound))
                    })
            }
            (Self::Array(_) | Self::Object(_), _) => false,
        }
    }
}

/// What volatile values have been met: those of the two runs, and that of the survivor.
type Bound<'a> = Vec<((&'a Value, &'a Value), &'a Value)>;

fn is_scalar(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

fn same_type(one: &Value, other: &Value) -> bool {
    matches!(
        (one, other),
        (Value::Bool(_), Value::Bool(_))
            | (Value::Number(_), Value::Number(_))
            | (Value::String(_), Value::String(_))
            | (Value::Null, Value::Null)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_change_and_a_balance_may_not() {
        let template =
            Template::learn(br#"{"at":"10:00","balance":5}"#, br#"{"at":"10:01","balance":5}"#)
                .unwrap();
        assert!(template.fits(br#"{"at":"23:59","balance":5}"#));
        assert!(!template.fits(br#"{"at":"23:59","balance":6}"#));
        assert!(!template.fits(br#"{"at":7,"balance":5}"#));
        assert!(!template.fits(br#"{"at":"23:59","balance":5"#));
    }

    #[test]
    fn values_that_belong_together_must_change_together() {
        let template = Template::learn(b"[7,7,1]", b"[8,8,1]").unwrap();
        assert!(template.fits(b"[9,9,1]"));
        assert!(!template.fits(b"[9,8,1]"));
    }

    #[test]
    fn another_shape_teaches_nothing() {
        assert_eq!(Template::learn(b"[1]", b"[1,2]"), None);
        assert_eq!(Template::learn(b"{", b"{"), None);
    }
}
