//! How many values may a label have?

use std::collections::{HashMap, HashSet};

/// The values of each label so far.
#[derive(Debug, Default)]
pub struct Bounds(HashMap<&'static str, HashSet<String>>);

impl Bounds {
    /// The value itself, or "other" where the label has its fill or the value is absurdly long.
    pub fn value(&mut self, label: &'static str, value: &str) -> String {
        if value.len() > MAX_BYTES {
            return OTHER.to_owned();
        }
        let values = self.0.entry(label).or_default();
        if !values.contains(value) {
            if values.len() >= MAX_VALUES {
                return OTHER.to_owned();
            }
            values.insert(value.to_owned());
        }
        value.to_owned()
    }

    /// Makes room: the value is told no more.
    pub fn forget(&mut self, label: &'static str, value: &str) {
        if let Some(values) = self.0.get_mut(label) {
            values.remove(value);
        }
    }
}

/// Where values beyond the bounds go.
pub const OTHER: &str = "other";

/// Distinct values of one label: more nodes than one Prometheus should be told of by one page.
pub const MAX_VALUES: usize = 1024;

/// Kubernetes' names have at most 253 characters.
const MAX_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_beyond_the_cap_become_other_and_known_ones_stay() {
        let mut bounds = Bounds::default();
        for i in 0..MAX_VALUES {
            assert_eq!(bounds.value("node", &i.to_string()), i.to_string());
        }
        assert_eq!(bounds.value("node", "one more"), OTHER);
        assert_eq!(bounds.value("node", "7"), "7");
        assert_eq!(bounds.value("server", "one more"), "one more");
        bounds.forget("node", "7");
        assert_eq!(bounds.value("node", "one more"), "one more");
        assert_eq!(bounds.value("server", &"x".repeat(1000)), OTHER);
    }
}
