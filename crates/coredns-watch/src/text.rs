//! What does a page in the Prometheus text format (version 0.0.4) say?
//!
//! The page comes from a stranger. It is read line by line; a line that is no sample is one error and never
//! spoils the next. What a sample means is left to `account.rs`.

use std::borrow::Cow;

/// One sample of a page, borrowed from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// The metric's name.
    pub name: &'a str,
    /// Labels in the order of the page, values unescaped.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// The value; NaN and infinities are valid here.
    pub value: f64,
}

/// Why a line is no sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Bytes that are no UTF-8.
    #[error("not UTF-8")]
    Encoding,
    /// No metric name where one must be.
    #[error("no metric name")]
    Name,
    /// A label without name, quotes, comma or end, or more labels than anyone needs.
    #[error("malformed labels")]
    Labels,
    /// No number where the value must be.
    #[error("no value")]
    Value,
    /// Something other than a time stamp after the value.
    #[error("trailing characters")]
    Trailing,
    /// The page ends within the line, so that its value may be cut short.
    #[error("the page ends within a line")]
    Cut,
}

/// The samples and errors of a page, in its order. Comments and empty lines are left out.
pub fn samples(page: &[u8]) -> impl Iterator<Item = Result<Sample<'_>, Malformed>> {
    page.split_inclusive(|byte| *byte == b'\n').filter_map(|line| {
        let Some(line) = line.strip_suffix(b"\n") else { return Some(Err(Malformed::Cut)) };
        let Ok(line) = str::from_utf8(line) else { return Some(Err(Malformed::Encoding)) };
        let line = line.trim_matches(BLANK);
        (!line.is_empty() && !line.starts_with('#')).then(|| sample(line))
    })
}

impl Sample<'_> {
    /// The label's value; empty where the label is not there, which is the same to Prometheus.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| *label == name).map_or("", |(_, value)| value)
    }
}

fn sample(line: &str) -> Result<Sample<'_>, Malformed> {
    let (name, rest) = word(line, ":").ok_or(Malformed::Name)?;
    let rest = rest.trim_start_matches(BLANK);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split(BLANK).filter(|word| !word.is_empty());
    let value = words.next().and_then(|word| word.parse().ok()).ok_or(Malformed::Value)?;
    let timestamp_is_fine = words.next().is_none_or(|word| word.parse::<i64>().is_ok());
    if !timestamp_is_fine || words.next().is_some() {
        return Err(Malformed::Trailing);
    }
    Ok(Sample { name, labels, value })
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// Reads labels up to the closing brace, which is eaten.
fn labels(mut rest: &str) -> Result<(Labels<'_>, &str), Malformed> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(BLANK);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        if labels.len() == MAX_LABELS {
            return Err(Malformed::Labels);
        }
        let (name, after) = word(rest, "").ok_or(Malformed::Labels)?;
        let after = after.trim_start_matches(BLANK).strip_prefix('=').ok_or(Malformed::Labels)?;
        let after = after.trim_start_matches(BLANK).strip_prefix('"').ok_or(Malformed::Labels)?;
        let (value, after) = quoted(after).ok_or(Malformed::Labels)?;
        labels.push((name, value));
        let after = after.trim_start_matches(BLANK);
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None if after.starts_with('}') => after,
            None => return Err(Malformed::Labels),
        };
    }
}

/// Letters, digits, underscores and the characters of `also`; no digit first.
fn word<'a>(text: &'a str, also: &str) -> Option<(&'a str, &'a str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || also.contains(c)))
        .unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end)?;
    let first = word.chars().next()?;
    (!first.is_ascii_digit()).then_some((word, rest))
}

/// A label value up to its closing quote, which is eaten. Only \\, \" and \n are escapes; any other backslash
/// stands for itself, as in Prometheus' own parser.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut escaped = false;
    let mut any = false;
    let end = text.char_indices().find_map(|(index, c)| {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
            any = true;
        } else if c == '"' {
            return Some(index);
        }
        None
    })?;
    let (raw, rest) = text.split_at_checked(end)?;
    let rest = rest.strip_prefix('"')?;
    Some((if any { Cow::Owned(unescape(raw)) } else { Cow::Borrowed(raw) }, rest))
}

fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some(escaped @ ('\\' | '"'))) => text.push(escaped),
            ('\\', Some(other)) => text.extend(['\\', other]),
            (c, _) => text.push(c),
        }
    }
    text
}

const BLANK: [char; 3] = [' ', '\t', '\r'];

/// More labels than any CoreDNS metric has; a page can't make us keep more.
const MAX_LABELS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Result<Sample<'_>, Malformed> {
        let mut all = samples(line.as_bytes());
        let first = all.next().unwrap();
        assert_eq!(all.next(), None);
        first
    }

    #[test]
    fn commas_braces_and_escapes_stay_within_their_label_value() {
        let line = "m:x{a=\"1,2}\",b = \"q\\\"\\\\\\n\\d\" , } 4.2e+01 1700000000000\n";
        let sample = one(line).unwrap();
        assert_eq!((sample.name, sample.value), ("m:x", 42.0));
        assert_eq!(sample.label("a"), "1,2}");
        assert_eq!(sample.label("b"), "q\"\\\n\\d");
        assert_eq!(sample.label("c"), "");
    }

    #[test]
    fn go_prints_its_special_numbers_this_way() {
        assert!(one("m NaN\n").unwrap().value.is_nan());
        assert_eq!(one("m +Inf\n").unwrap().value, f64::INFINITY);
        assert_eq!(one("m{} -Inf\r\n").unwrap().value, f64::NEG_INFINITY);
    }

    #[test]
    fn each_kind_of_bad_line_is_told_apart() {
        for (line, expected) in [
            ("{a=\"b\"} 1\n", Malformed::Name),
            ("1m 1\n", Malformed::Name),
            ("<html>\n", Malformed::Name),
            ("m{a=b} 1\n", Malformed::Labels),
            ("m{a=\"b\n", Malformed::Labels),
            ("m{a=\"b\" c=\"d\"} 1\n", Malformed::Labels),
            ("m\n", Malformed::Value),
            ("m{a=\"b\"} one\n", Malformed::Value),
            ("m 1 2 3\n", Malformed::Trailing),
            ("m 1 x\n", Malformed::Trailing),
            ("m 12", Malformed::Cut),
        ] {
            assert_eq!(one(line).unwrap_err(), expected, "{line:?}");
        }
        assert_eq!(samples(b"m\xff 1\n").next(), Some(Err(Malformed::Encoding)));
        let many = format!("m{{{}}} 1\n", "a=\"b\",".repeat(MAX_LABELS + 1));
        assert_eq!(one(&many).unwrap_err(), Malformed::Labels);
    }

    #[test]
    fn a_bad_line_spoils_no_other() {
        let page = b"# HELP m x\nm 1\n}{\n\nm 2\n";
        let values: Vec<_> = samples(page).map(|s| s.ok().map(|s| s.value)).collect();
        assert_eq!(values, [Some(1.0), None, Some(2.0)]);
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic(page in proptest::collection::vec(any::<u8>(), 0..600)) {
            samples(&page).for_each(drop);
        }

        #[test]
        fn nearly_valid_pages_do_neither(page in "([a-z_:]{0,3}[{]?([a-z]=\"[\\\\\",}n]{0,4}\",?){0,3}[}]? ?[0-9NaInf+e.-]{0,5}\n?){0,8}") {
            samples(page.as_bytes()).for_each(drop);
        }

        #[test]
        fn what_is_written_by_the_rules_is_read_back(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,20}",
            labels in proptest::collection::vec(("[a-zA-Z_][a-zA-Z0-9_]{0,8}", "\\PC{0,12}|[\\\\\"\n,{}]{0,6}"), 0..5),
            value in any::<f64>(),
        ) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let inner: Vec<String> = labels.iter().map(|(n, v)| format!("{n}=\"{}\"", escape(v))).collect();
            let line = format!("{name}{{{}}} {value:e}\n", inner.join(","));
            let sample = one(&line).unwrap();
            prop_assert_eq!(sample.name, name.as_str());
            prop_assert!(sample.value == value || value.is_nan() && sample.value.is_nan());
            let read: Vec<(String, String)> =
                sample.labels.iter().map(|(n, v)| ((*n).to_owned(), v.to_string())).collect();
            prop_assert_eq!(read, labels);
        }
    }
}
