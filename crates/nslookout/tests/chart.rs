//! Does the chart say what nslookout says: the same schema of the configuration, the same Prometheus rules?
//!
//! charts/nslookout/values.schema.json is made of schema.yaml beside it and of the configuration's own schema, the rules
//! are a copy of config/alerts.yaml: a chart can't read files outside its folder. With NSLOOKOUT_WRITE_CHART=1 this test
//! writes both; without, it compares them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::fs;
use std::path::PathBuf;

use nslookout::config::Config;
use serde_json::{Value, json};

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn holds(path: &str, text: &str) {
    if std::env::var_os("NSLOOKOUT_WRITE_CHART").is_some() {
        fs::create_dir_all(file(path).parent().unwrap()).unwrap();
        fs::write(file(path), text).unwrap();
    }
    let present = fs::read_to_string(file(path)).unwrap_or_default();
    assert!(present == text, "{path} is old: NSLOOKOUT_WRITE_CHART=1 cargo test -p nslookout --test chart");
}

fn schema() -> Value {
    let own = fs::read_to_string(file("charts/nslookout/schema.yaml")).unwrap();
    let mut schema: Value = serde_yaml::from_str(&own).unwrap();
    let mut config = serde_json::to_value(schemars::schema_for!(Config)).unwrap();
    let parts = config.as_object_mut().unwrap();
    parts.remove("$schema");
    let defs = parts.remove("$defs").unwrap();
    let all = schema["$defs"].as_object_mut().unwrap();
    all.extend(defs.as_object().unwrap().clone());
    all.insert("Config".into(), config);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema
}

#[test]
fn the_charts_schema_has_the_configurations_own() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    holds("charts/nslookout/values.schema.json", &text);
}

#[test]
fn the_charts_rules_are_those_of_the_configuration() {
    let rules = fs::read_to_string(file("config/alerts.yaml")).unwrap();
    holds("charts/nslookout/files/alerts.yaml", &rules);
}

#[test]
fn the_charts_own_values_keep_to_its_schema_and_typos_do_not() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let values = fs::read_to_string(file("charts/nslookout/values.yaml")).unwrap();
    let values: Value = serde_yaml::from_str(&values).unwrap();
    let mistakes: Vec<_> = validator.iter_errors(&values).map(|error| error.to_string()).collect();
    assert_eq!(mistakes, Vec::<String>::new());
    for (pointer, key) in [
        ("", "proberr"),
        ("/image", "repo"),
        ("/node", "enable"),
        ("/correlator", "replicas"),
        ("/podMonitor", "label"),
        ("/resourceQuota", "pod"),
        ("/config", "alertmanager"),
        ("/config/metrics", "port"),
        ("/config/correlator", "caFile"),
        ("/networkPolicy", "on"),
    ] {
        let mut typo = values.clone();
        typo.pointer_mut(pointer).unwrap()[key] = json!(1);
        assert!(!validator.is_valid(&typo), "{pointer}/{key}");
    }
    for (pointer, value) in
        [("/image/pullPolicy", "Sometimes"), ("/node/enabled", "yes"), ("/podMonitor/interval", "soon")]
    {
        let mut wrong = values.clone();
        *wrong.pointer_mut(pointer).unwrap() = json!(value);
        assert!(!validator.is_valid(&wrong), "{pointer}: {value}");
    }
}
