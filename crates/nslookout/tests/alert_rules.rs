//! Do the Prometheus rules say what nslookout pushes, and do they work?
//!
//! config/alerts.yaml and its unit tests are made here from the causes' own words, so that pushed alerts,
//! `nslookout explain` and rules never say different things. With NSLOOKOUT_WRITE_RULES=1 this test writes the two
//! files; without, it compares them. Then the real promtool checks and tests them, and each metric and label in a
//! rule is looked up in a scrape.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use correlate::{Confidence, Incident, Scope, Severity, Suffers, causes};
use evidence::{
    Batch, BootTime, ClockReading, Counters, Coverage, CoverageState, DropClass, DropTotals, Lookup,
    LookupId, NameKind, Observation, Observer, Outcome, Place, Role, ServerRole, WallTime,
};
use nslookout::metrics::{Metrics, SendResult};
use serde_json::Value;

/// One rule with its unit test.
struct Rule {
    alert: &'static str,
    expr: String,
    /// How long it must hold.
    hold: Option<&'static str>,
    labels: Vec<(&'static str, &'static str)>,
    annotations: Vec<(&'static str, String)>,
    test: Test,
}

/// Series, when the alert is silent, when it fires and as what.
struct Test {
    series: Vec<(String, &'static str)>,
    silent_at: Vec<&'static str>,
    fires_at: Vec<&'static str>,
    labels: Vec<(&'static str, &'static str)>,
    /// Annotations that templates change.
    told: Vec<(&'static str, String)>,
}

fn rules() -> Vec<Rule> {
    causes()
        .iter()
        .map(|cause| dns(cause))
        .chain([blind_denied(), blind_silent(), absent(), watchdog()])
        .collect()
}

fn dns(cause: &'static correlate::Cause) -> Rule {
    let id = cause.id;
    // What is about servers is tested with a server's scope, the rest with a node's.
    let (scope, value, words) = match id {
        "server-silent" => ("server", "10.244.0.2:5353", " at server 10.244.0.2:5353"),
        "no-endpoints" | "upstream-failing" => ("", "", ""),
        _ => ("node", "node-a", " on node node-a"),
    };
    let open = |severity: &str| {
        let (node, server) =
            (if scope == "node" { value } else { "" }, if scope == "server" { value } else { "" });
        format!(
            "nslookout_incident_open{{cause=\"{id}\", severity=\"{severity}\", node=\"{node}\", server=\"{server}\", \
             instance=\"10.0.0.1:9853\", job=\"nslookout\"}}"
        )
    };
    let mut labels = vec![("cause", id), ("severity", "critical")];
    labels.extend((!scope.is_empty()).then_some((scope, value)));
    Rule {
        alert: "NslookoutDNS",
        expr: format!(
            "max by (cause, severity, node, server) (nslookout_incident_open{{cause=\"{id}\", severity!=\"info\"}}) > 0"
        ),
        hold: None,
        // The same as on the series; said again so that no two rules look alike to promtool.
        labels: vec![("cause", id)],
        annotations: vec![
            (
                "summary",
                format!(
                    "{}{{{{ with $labels.node }}}} on node {{{{ . }}}}{{{{ end }}}}{{{{ with $labels.server }}}} at \
                     server {{{{ . }}}}{{{{ end }}}}",
                    cause.title
                ),
            ),
            ("description", cause.seen.to_owned()),
            ("proves", cause.proves.to_owned()),
            ("mend", cause.mend.to_owned()),
            ("runbook", format!("nslookout explain {id}")),
        ],
        test: Test {
            series: vec![(open("critical"), "_x2 1+0x3 stale _x10"), (open("info"), "1+0x20")],
            silent_at: vec!["5s", "45s"],
            fires_at: vec!["10s", "25s"],
            labels,
            told: vec![("summary", format!("{}{words}", cause.title))],
        },
    }
}

fn blind_denied() -> Rule {
    Rule {
        alert: "NslookoutBlind",
        expr: "max by (observer, place) (nslookout_observer_up) == 0 and \
               max by (observer, place) (max_over_time(nslookout_observer_up[1h])) == 1"
            .into(),
        hold: Some("5s"),
        labels: vec![("reason", "denied"), ("severity", "warning")],
        annotations: vec![
            ("summary", "{{ $labels.observer }} no longer sees {{ $labels.place }}".into()),
            (
                "description",
                "An observer that used to look may look no more: causes that need it can't be ruled out."
                    .into(),
            ),
            ("runbook", "nslookout status names what is missing, under notSeen".into()),
        ],
        test: Test {
            series: vec![
                (r#"nslookout_observer_up{observer="drops", place="node-a"}"#.into(), "1+0x3 0+0x8 1+0x8"),
                // Never looked: known from the start, no news.
                (r#"nslookout_observer_up{observer="drops", place="node-b"}"#.into(), "0+0x20"),
            ],
            silent_at: vec!["15s", "20s", "65s"],
            fires_at: vec!["30s"],
            labels: vec![
                ("observer", "drops"),
                ("place", "node-a"),
                ("reason", "denied"),
                ("severity", "warning"),
            ],
            told: vec![("summary", "drops no longer sees node-a".into())],
        },
    }
}

fn blind_silent() -> Rule {
    Rule {
        alert: "NslookoutBlind",
        expr: "sum by (node, role) (increase(nslookout_batches_total[1m])) == 0".into(),
        hold: None,
        labels: vec![("reason", "silent"), ("severity", "warning")],
        annotations: vec![
            ("summary", "no evidence from {{ $labels.node }} ({{ $labels.role }}) for a minute".into()),
            (
                "description",
                "Even a quiet observer speaks every 5 s. What this one alone sees is not seen now.".into(),
            ),
            ("runbook", "nslookout status; then the log of the nslookout that runs there".into()),
        ],
        test: Test {
            series: vec![
                (r#"nslookout_batches_total{node="node-a", role="node"}"#.into(), "0+1x6 6+0x20"),
                (r#"nslookout_batches_total{node="node-b", role="node"}"#.into(), "0+1x30"),
            ],
            silent_at: vec!["30s"],
            fires_at: vec!["105s"],
            labels: vec![("node", "node-a"), ("reason", "silent"), ("role", "node"), ("severity", "warning")],
            told: vec![("summary", "no evidence from node-a (node) for a minute".into())],
        },
    }
}

fn absent() -> Rule {
    Rule {
        alert: "NslookoutAbsent",
        expr: "absent(nslookout_batches_total)".into(),
        hold: Some("1m"),
        labels: vec![("severity", "critical")],
        annotations: vec![
            ("summary", "Prometheus gets no metrics of nslookout".into()),
            (
                "description",
                "None of the other alerts can fire: nslookout doesn't run, or its page is not scraped."
                    .into(),
            ),
            (
                "runbook",
                "does `nslookout run` run, and is metrics.listen an address that Prometheus reaches?".into(),
            ),
        ],
        test: Test {
            series: vec![(r#"nslookout_batches_total{node="a", role="node"}"#.into(), "0+1x6 stale")],
            silent_at: vec!["30s", "60s"],
            fires_at: vec!["2m"],
            labels: vec![("severity", "critical")],
            told: Vec::new(),
        },
    }
}

fn watchdog() -> Rule {
    Rule {
        alert: "NslookoutWatchdog",
        expr: "sum(increase(nslookout_batches_total[2m])) > 0".into(),
        hold: None,
        labels: vec![("severity", "none")],
        annotations: vec![
            ("summary", "nslookout takes evidence in, and Prometheus reads it".into()),
            (
                "description",
                "It always fires. Route it to an outside heartbeat that calls when it stops coming.".into(),
            ),
            ("runbook", "when it stops: NslookoutAbsent and NslookoutBlind say what is missing".into()),
        ],
        test: Test {
            series: vec![(r#"nslookout_batches_total{node="a", role="node"}"#.into(), "0+1x20 20+0x60")],
            silent_at: vec!["0s", "5m"],
            fires_at: vec!["10s", "90s"],
            labels: vec![("severity", "none")],
            told: Vec::new(),
        },
    }
}

/// A text as a folded YAML block under a key that is indented so deep.
fn folded(indent: usize, key: &str, text: &str) -> String {
    let pad = " ".repeat(indent);
    let mut block = format!("{pad}{key}: >-");
    let mut width = usize::MAX;
    for word in text.split_whitespace() {
        if width.saturating_add(word.chars().count()) > 96 {
            write!(block, "\n{pad}  {word}").unwrap();
            width = indent + 2;
        } else {
            write!(block, " {word}").unwrap();
        }
        width += word.chars().count() + 1;
    }
    block + "\n"
}

fn rules_file() -> String {
    let mut file = String::from(
        "# Prometheus' rules for what nslookout finds: for `alerting: prometheus`. With `alerting: push` nslookout sends\n\
         # the same alerts itself; use one of the two, never both. Scrape it every 5 s to 30 s. The texts are the causes'\n\
         # own: change them in crates/correlate/src/causes/, then NSLOOKOUT_WRITE_RULES=1 cargo test -p nslookout --test\n\
         # alert_rules. The label `cluster` of pushed alerts is Prometheus' external label here.\n\
         groups:\n  - name: nslookout\n    interval: 5s\n    rules:\n",
    );
    for rule in rules() {
        writeln!(file, "      - alert: {}", rule.alert).unwrap();
        file += &folded(8, "expr", &rule.expr);
        if let Some(hold) = rule.hold {
            writeln!(file, "        for: {hold}").unwrap();
        }
        if !rule.labels.is_empty() {
            file += "        labels:\n";
        }
        for (name, value) in &rule.labels {
            writeln!(file, "          {name}: {value}").unwrap();
        }
        file += "        annotations:\n";
        for (name, text) in &rule.annotations {
            file += &folded(10, name, text);
        }
    }
    file
}

fn tests_file() -> String {
    let mut file = String::from(
        "# Unit tests of alerts.yaml: `promtool test rules alerts.test.yaml`. Made with it, by the same command.\n\
         rule_files: [alerts.yaml]\nevaluation_interval: 5s\ntests:\n",
    );
    for rule in rules() {
        let Test { series, silent_at, fires_at, labels, told } = &rule.test;
        let of = labels
            .iter()
            .find(|(name, _)| *name == "cause")
            .map_or(String::new(), |(_, id)| format!(" {id}"));
        writeln!(file, "  - name: {}{of}\n    interval: 5s\n    input_series:", rule.alert).unwrap();
        for (name, values) in series {
            writeln!(file, "      - series: '{name}'\n        values: '{values}'").unwrap();
        }
        file += "    alert_rule_test:\n";
        for at in silent_at {
            let alert = rule.alert;
            writeln!(file, "      - {{eval_time: {at}, alertname: {alert}, exp_alerts: []}}").unwrap();
        }
        for at in fires_at {
            writeln!(file, "      - eval_time: {at}\n        alertname: {}\n        exp_alerts:", rule.alert)
                .unwrap();
            file += "          - exp_labels:\n";
            for (name, value) in labels {
                writeln!(file, "              {name}: '{value}'").unwrap();
            }
            file += "            exp_annotations:\n";
            for (name, text) in &rule.annotations {
                let text = told.iter().find(|(told, _)| told == name).map_or(text, |(_, told)| told);
                file += &folded(14, name, text);
            }
        }
    }
    file
}

fn config(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name)
}

#[test]
fn the_committed_rules_have_the_causes_own_words() {
    for (name, text) in [("alerts.yaml", rules_file()), ("alerts.test.yaml", tests_file())] {
        if std::env::var_os("NSLOOKOUT_WRITE_RULES").is_some() {
            std::fs::write(config(name), &text).unwrap();
        }
        let committed = std::fs::read_to_string(config(name)).unwrap_or_default();
        assert!(
            committed == text,
            "config/{name} is not what the causes say now: NSLOOKOUT_WRITE_RULES=1 cargo test -p nslookout --test alert_rules"
        );
    }
}

#[test]
fn promtool_finds_the_rules_right_and_each_fires_and_is_silent_as_it_should() {
    let promtool = lab::programs::promtool().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("alerts.yaml"), rules_file()).unwrap();
    std::fs::write(folder.path().join("alerts.test.yaml"), tests_file()).unwrap();
    for command in
        [["check", "rules", "--lint-fatal", "alerts.yaml"].as_slice(), &["test", "rules", "alerts.test.yaml"]]
    {
        let output = Command::new(&promtool).args(command).current_dir(folder.path()).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command:?}: {}{}", said(&output.stdout), said(&output.stderr));
    }
}

/// The labels of each metric on the page of a process that has seen one of everything.
fn scrape() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new().unwrap();
    let lookup = Lookup {
        id: LookupId(1),
        vantage: "pod-1".into(),
        profile: "musl".into(),
        server: "10.96.0.10:53".parse().unwrap(),
        role: ServerRole::Service,
        name: "a.".into(),
        name_kind: NameKind::Cluster,
        started: BootTime(0),
        ended: BootTime(1),
        outcome: Outcome::Addresses,
        packets: 2,
    };
    let drops = DropTotals { place: Place::Node("node-a".into()), class: DropClass::Rule, all: 1, dns: 1 };
    metrics.record(&Batch {
        node: "node-a".into(),
        role: Role::Node,
        boot_id: "b".into(),
        sequence: 1,
        clock: ClockReading::now(),
        from: BootTime(0),
        to: BootTime(1),
        observations: vec![
            Observation::Lookup(lookup),
            Observation::DropTotals(drops),
            Observation::Counters(Counters { node: "node-a".into(), ..Counters::default() }),
        ],
        coverage: vec![Coverage {
            observer: Observer::Drops,
            place: "node-a".into(),
            state: CoverageState::Looked { lost: 1 },
        }],
    });
    metrics.set_incidents(&[Incident {
        id: "1".into(),
        cause: "insert-race".into(),
        title: String::new(),
        confidence: Confidence::Certain,
        severity: Severity::Critical,
        scope: Scope { node: Some("node-a".into()), server: Some("s".into()), client: None },
        since: WallTime(1),
        until: None,
        suffers: Suffers::default(),
        proof: Vec::new(),
        ruled_out: Vec::new(),
        explained: Vec::new(),
        not_seen: Vec::new(),
        mend: String::new(),
        closed_into: None,
    }]);
    metrics.set_symptoms([("insert-race", Confidence::Certain, 1)].into_iter());
    metrics.count_send("10.0.0.1:9093", SendResult::Accepted);
    let page = String::from_utf8(metrics.page()).unwrap();
    let mut families: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let labels = rest.split(',').filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
        families.entry(name.to_owned()).or_default().extend(labels);
    }
    families
}

/// Words of a text that begin with a letter.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(move |c| !word(c)).filter(|w| w.starts_with(|c: char| c.is_ascii_alphabetic()))
}

#[test]
fn each_metric_and_label_of_a_rule_is_there_in_a_scrape() {
    let families = scrape();
    let file: Value = serde_yaml::from_str(&rules_file()).unwrap();
    let rules = file["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > causes().len());
    for rule in rules {
        let expr = rule["expr"].as_str().unwrap();
        let metrics: Vec<&str> = words(expr).filter(|word| word.starts_with("nslookout_")).collect();
        assert!(!metrics.is_empty(), "{expr}");
        for metric in &metrics {
            assert!(families.contains_key(*metric), "{metric} of {expr} is in no scrape");
        }
        let known: BTreeSet<&String> = metrics.iter().flat_map(|metric| &families[*metric]).collect();
        let annotations = rule["annotations"].to_string();
        // Grouping: by (a, b). Matching: {a="x", b!="y"}. Annotations: $labels.a.
        let grouped = expr.split("by (").skip(1).flat_map(|rest| words(rest.split(')').next().unwrap()));
        let matched = expr.split('{').skip(1).flat_map(|rest| {
            let matchers = rest.split('}').next().unwrap().split(',');
            matchers.filter_map(|matcher| words(matcher).next())
        });
        let told = annotations.split("$labels.").skip(1).filter_map(|rest| words(rest).next());
        for label in grouped.chain(matched).chain(told) {
            assert!(known.contains(&label.to_owned()), "label {label} of {expr} is on none of {metrics:?}");
        }
        for annotation in ["summary", "description", "runbook"] {
            assert!(rule["annotations"][annotation].is_string(), "{expr} has no {annotation}");
        }
    }
}
