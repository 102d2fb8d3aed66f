//! Where does a tree differ from the schema made of the structs, in the operator's words?
//!
//! jsonschema finds all mistakes at once, but tells them in its own terms. Here each gets its path as one would
//! write it (`nodes[0].name`) and a sentence without patterns and keywords. `near.rs` guesses at misspelt keys,
//! `shape.rs` knows the texts of a certain shape.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::{Location, LocationSegment};
use jsonschema::{JsonType, ValidationError};
use serde_json::{Map, Value, json};

use super::Config;
use super::near::nearest;
use super::shape::Shape;

/// All that the schema forbids, each with its path, and the tree without it.
pub(super) fn against_schema(mut tree: Value) -> Result<(Vec<String>, Value), String> {
    let schema = schema()?;
    let mut options = jsonschema::options().should_validate_formats(true);
    for shape in Shape::ALL {
        options = options.with_format(shape.name(), move |text: &str| shape.problem(text).is_none());
    }
    let validator = options.build(&schema).map_err(|error| error.to_string())?;
    let mut mistakes = Vec::new();
    let mut faulty = Vec::new();
    for error in validator.iter_errors(&tree) {
        mistakes.extend(told(&error, &schema));
        faulty.push(sections(&error));
    }
    for (path, keys) in faulty {
        remove(&mut tree, &path, &keys);
    }
    Ok((mistakes, tree))
}

/// What serde alone refuses: each value is tried by itself, for serde doesn't say where it stopped.
pub(super) fn unread(tree: &Value) -> Vec<String> {
    fn walk<'a>(tree: &'a Value, path: &mut Vec<&'a str>, mistakes: &mut Vec<String>) {
        if let Value::Object(map) = tree {
            for (key, value) in map {
                path.push(key);
                walk(value, path, mistakes);
                path.pop();
            }
            return;
        }
        let alone = path.iter().rev().fold(tree.clone(), |value, key| json!({ *key: value }));
        if let Err(error) = serde_json::from_value::<Config>(alone) {
            // To JSON Schema 3.0 is a whole number, to serde it is none.
            let words =
                if tree.is_f64() { format!("{tree} is not a whole number") } else { error.to_string() };
            mistakes.push(format!("{}: {words}", path.join(".")));
        }
    }
    let mut mistakes = Vec::new();
    walk(tree, &mut Vec::new(), &mut mistakes);
    mistakes
}

/// The structs' schema, with what schemars can't know of them.
fn schema() -> Result<Value, String> {
    let mut schema =
        serde_json::to_value(schemars::schema_for!(Config)).map_err(|error| error.to_string())?;
    sharpen(&mut schema);
    if let Some(Value::Object(address)) =
        schema.pointer_mut("/$defs/AlertmanagersConfig/properties/addresses/items")
    {
        address.insert("format".into(), Shape::Alertmanager.name().into());
    }
    Ok(schema)
}

fn sharpen(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A pattern lets "99999999999999999999s" and "10.0.0.999" pass, and can't be told to anybody.
            if let Some(shape) = map.get("pattern").and_then(Value::as_str).and_then(Shape::of_pattern) {
                map.remove("pattern");
                map.insert("format".into(), shape.name().into());
            }
            if map.get("format").is_some_and(|format| format == "uint32") {
                map.insert("maximum".into(), u32::MAX.into());
            }
            map.values_mut().for_each(sharpen);
        }
        Value::Array(values) => values.iter_mut().for_each(sharpen),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn told(error: &ValidationError<'_>, schema: &Value) -> Vec<String> {
    let path = path(error.instance_path());
    let within = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let rule = schema_of(error.schema_path(), schema);
    let given = given(error.instance());
    let shape = rule.and_then(|rule| rule.get("format")).and_then(Value::as_str).and_then(Shape::of_name);
    let text = error.instance().as_str().map_or_else(|| error.instance().to_string(), str::to_owned);
    let words = match (error.kind(), shape.and_then(|shape| shape.problem(&text))) {
        (ValidationErrorKind::AdditionalProperties { unexpected }, _) => {
            let known: Vec<&str> = rule
                .and_then(|rule| rule.get("properties"))
                .and_then(Value::as_object)
                .map(|properties| properties.keys().map(String::as_str).collect())
                .unwrap_or_default();
            let hint = |key: &str| match nearest(key, &known) {
                Some(near) => format!("was {} meant?", within(near)),
                None => format!("there are {}", known.join(", ")),
            };
            return unexpected
                .iter()
                .map(|key| format!("{}: is no key; {}", within(key), hint(key)))
                .collect();
        }
        (ValidationErrorKind::Required { property }, _) => {
            return vec![format!("{}: is missing", within(property.as_str().unwrap_or_default()))];
        }
        (ValidationErrorKind::Format { .. } | ValidationErrorKind::Type { .. }, Some(problem)) => {
            format!("{given} {problem}")
        }
        (ValidationErrorKind::Type { kind }, None) => format!("{given} is not {}", wanted(kind)),
        (ValidationErrorKind::OneOfNotValid { .. } | ValidationErrorKind::Enum { .. }, _) => {
            match rule.map(choices).filter(|choices| !choices.is_empty()) {
                Some(choices) => format!("{given} is none of {}", choices.join(", ")),
                None => error.to_string(),
            }
        }
        (ValidationErrorKind::Minimum { limit }, _) => format!("{given} is below {limit}"),
        (ValidationErrorKind::Maximum { limit }, _) => format!("{given} is above {limit}"),
        (ValidationErrorKind::MinItems { limit }, _) => format!("has too few entries; at least {limit}"),
        // What the structs' schema doesn't use: better in jsonschema's words than not at all.
        _ => error.to_string(),
    };
    vec![if path.is_empty() { words } else { format!("{path}: {words}") }]
}

/// `nodes[0].name`
fn path(location: &Location) -> String {
    let mut path = String::new();
    for segment in location.segments() {
        match segment {
            LocationSegment::Property(key) if path.is_empty() => path.push_str(&key),
            LocationSegment::Property(key) => {
                path.push('.');
                path.push_str(&key);
            }
            LocationSegment::Index(i) => path.push_str(&format!("[{i}]")),
        }
    }
    path
}

/// The part of the schema whose keyword refused.
fn schema_of<'a>(location: &Location, schema: &'a Value) -> Option<&'a Value> {
    let (parent, _keyword) = location.as_str().rsplit_once('/')?;
    schema.pointer(parent)
}

/// The values that an enum allows: with doc comments on them, schemars makes them a `oneOf` of constants.
fn choices(rule: &Value) -> Vec<String> {
    let of = |keyword| rule.get(keyword).and_then(Value::as_array).into_iter().flatten();
    let in_one_of = of("oneOf").flat_map(|choice| {
        choice
            .get("const")
            .into_iter()
            .chain(choice.get("enum").and_then(Value::as_array).into_iter().flatten())
    });
    of("enum").chain(in_one_of).map(Value::to_string).collect()
}

fn given(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a section".into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() > LONGEST_SHOWN => {
            format!("{:?}", format!("{}...", text.chars().take(LONGEST_SHOWN).collect::<String>()))
        }
        Value::String(text) => format!("{text:?}"),
    }
}

fn wanted(kind: &TypeKind) -> String {
    let word = |kind| match kind {
        JsonType::Null => "null",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::String => "a text",
        JsonType::Array => "a list",
        JsonType::Object => "a section with keys of its own",
    };
    match kind {
        TypeKind::Single(kind) => word(*kind).into(),
        TypeKind::Multiple(kinds) => {
            let mut kinds: Vec<JsonType> = kinds.iter().collect();
            kinds.sort_by_key(|kind| *kind == JsonType::Null);
            kinds.into_iter().map(word).collect::<Vec<_>>().join(" or ")
        }
    }
}

/// The keys to be left out so that the rest can be read: the sections they are in, and they. A list with a mistake
/// goes as a whole, for its entries would change their numbers.
fn sections(error: &ValidationError<'_>) -> (Vec<String>, Vec<String>) {
    let mut path: Vec<String> = Vec::new();
    let mut in_list = false;
    for segment in error.instance_path().segments() {
        match segment {
            LocationSegment::Property(key) => path.push(key.into_owned()),
            LocationSegment::Index(_) => {
                in_list = true;
                break;
            }
        }
    }
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } if !in_list => (path, unexpected.clone()),
        _ => {
            let key = path.pop();
            (path, key.into_iter().collect())
        }
    }
}

fn remove(tree: &mut Value, path: &[String], keys: &[String]) {
    let section = path.iter().try_fold(&mut *tree, |section, key| section.get_mut(key));
    match section {
        Some(Value::Object(map)) => keys.iter().for_each(|key| drop(map.remove(key))),
        // The tree itself is no section.
        Some(other) if path.is_empty() => *other = Value::Object(Map::new()),
        Some(_) | None => {}
    }
}

const LONGEST_SHOWN: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_in_the_schema_and_no_pattern_is_left() {
        let schema = schema().unwrap().to_string();
        for shape in Shape::ALL {
            assert!(schema.contains(&format!("\"format\":{:?}", shape.name())), "{shape:?}");
        }
        assert!(!schema.contains("\"pattern\""), "{schema}");
    }

    #[test]
    fn each_mistake_is_told_in_plain_words() {
        for (tree, told) in [
            ("nodse: []", "nodse: is no key; was nodes meant?"),
            ("prober: {Interval: 2s}", "prober.Interval: is no key; was prober.interval meant?"),
            ("metrics: {tls: true}", "metrics.tls: is no key; there are listen"),
            ("nodes: [{name: a, nets: /x}]", "nodes[0].nets: is no key; was nodes[0].netns meant?"),
            ("nodes: [{netns: /x}]", "nodes[0].name: is missing"),
            ("nodes: {name: a}", "nodes: a section is not a list"),
            ("prober: {interval: fast}", "prober.interval: \"fast\" is no duration (like \"2s\", \"500ms\")"),
            ("prober: {interval: 2}", "prober.interval: 2 is no duration (like \"2s\", \"500ms\")"),
            ("prober: {inFlight: many}", "prober.inFlight: \"many\" is not a whole number"),
            ("prober: {directFrom: -1}", "prober.directFrom: -1 is below 0"),
            ("prober: {profiles: []}", "prober.profiles: has too few entries; at least 1"),
            (
                "prober: {profiles: [uclibc]}",
                "prober.profiles[0]: \"uclibc\" is none of \"musl\", \"musl-1.2.5\", \"glibc\"",
            ),
            ("prober: {names: {forwarded: 7}}", "prober.names.forwarded: 7 is not a text or null"),
            (
                "correlate: {likelySymptoms: 5000000000}",
                "correlate.likelySymptoms: 5000000000 is above 4294967295",
            ),
            ("conntrackWatch: {drops: maybe}", "conntrackWatch.drops: \"maybe\" is not true or false"),
            ("corednsWatch: {metricsPort: 70000}", "corednsWatch.metricsPort: 70000 is above 65535"),
            ("alerting: both", "alerting: \"both\" is none of \"push\", \"prometheus\""),
            (
                "alertmanagers: {addresses: ['http://am:9093']}",
                "alertmanagers.addresses[0]: \"http://am:9093\" is no IP address: a host name can't be resolved while \
                 DNS is down; use http://IP:PORT, or alertmanagers.services",
            ),
            (
                "metrics: {listen: 'localhost:9853'}",
                "metrics.listen: \"localhost:9853\" is no IP address with a port (like \"127.0.0.1:9853\")",
            ),
            ("[]", "a list is not a section with keys of its own"),
        ] {
            let (mistakes, _) = against_schema(serde_yaml::from_str(tree).unwrap()).unwrap();
            assert_eq!(mistakes, [told], "{tree}");
        }
    }

    #[test]
    fn what_is_not_faulty_is_still_read() {
        let tree =
            json!({"prober": {"interval": "fast", "inFlight": 7}, "nodes": [{"name": "a"}, {}], "x": 1});
        let (mistakes, rest) = against_schema(tree).unwrap();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert_eq!(rest, json!({"prober": {"inFlight": 7}}));
    }
}
