//! The chart as people really install it: by Helm 3 and 4, by kubectl, under PodSecurity, upgraded while lookups go
//! on, asked from a laptop, and taken away again.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is how a test fails")]

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use e2e::callers::Callers;
use e2e::installed::{Installed, NAMESPACE, NODES, chart, sees_everything};
use e2e::laptop::{HOST, Laptop};
use lab::command;
use lab::kubernetes::Options;
use lab::programs::cluster::{self, helm4, prometheus_operator_crds};
use serde_json::json;

const IMAGE: [&str; 2] = ["image.repository=docker.io/library/nslookout", "image.pullPolicy=Never"];
/// A Helm that is built from its module believes in an old Kubernetes.
const KUBERNETES: &str = "--kube-version=1.34.4";

#[test]
fn the_chart_is_lint_free_and_ten_typos_are_refused_with_their_names() {
    for helm in [cluster::all().unwrap().helm.join("helm"), helm4().unwrap()] {
        command::run(Command::new(&helm).args(["lint", "--strict"]).arg(chart()), None).unwrap();
        for (typo, named) in [
            ("imagee.tag=1", "imagee"),
            ("image.tags=1", "tags"),
            ("image.digest=latest", "/image/digest"),
            ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
            ("node.enable=false", "enable"),
            ("correlator.replicas=2", "replicas"),
            ("podMonitor.enabled=maybe", "/podMonitor/enabled"),
            ("resourceQuota.pods=many", "/resourceQuota/pods"),
            ("config.metrics.port=1", "port"),
            ("config.alertmanager=http://x", "alertmanager"),
        ] {
            let mut template = Command::new(&helm);
            template.args(["template", "nslookout", KUBERNETES]).arg(chart()).args(["--set", typo]);
            let output = command::output(&mut template, None).unwrap();
            let said = text(&output.stderr);
            assert!(!output.status.success(), "{typo}");
            assert!(said.contains(named) && said.contains("nslookout"), "{typo}: {said}");
        }
    }
}

#[test]
fn the_chart_is_installed_upgraded_asked_and_removed_as_people_do_it() {
    let installed = Installed::raise(&Options::new(format!("chart-{}", std::process::id())));
    installed.load_image_as("next");
    installed.install(&[]);

    asked_from_a_laptop(&installed);
    helm_test(&installed);
    dry_runs(&installed);
    upgraded_and_rolled_back_under_lookups(&installed);
    uninstall(&mut installed.helm());
    installed.nothing_left();

    enforce(&installed, "restricted");
    applied_by_kubectl_without_node_agents(&installed);
    enforce(&installed, "baseline");
    refused_by_pod_security(&installed);
    installed.cluster.down().unwrap();
}

fn asked_from_a_laptop(installed: &Installed) {
    let cluster = &installed.cluster;
    let laptop = Laptop::of(cluster);
    let server = format!("https://{HOST}:6443");
    let token = laptop.token("reader", "nslookout-status");
    let reader = laptop.kubeconfig("reader", &server, &token);

    // The host is a name, the credential comes from a plugin, the rights are those of the chart's own Role.
    let ask = || laptop.status(Some(&reader), &[]);
    // Its name server may still be starting.
    let healthy = eventually(|| Some(ask()).filter(|output| output.status.code() == Some(0)));
    let output = healthy.unwrap_or_else(ask);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).starts_with("HEALTHY"), "{output:?}");
    assert!(text(&output.stderr).starts_with("asked nslookout/nslookout-correlator-"), "{output:?}");

    // It needs nothing of the cluster's DNS.
    installed.scale_dns(0);
    installed.named("no-endpoints");
    let output = laptop.status(Some(&reader), &["--output=json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("\"no-endpoints\""), "{output:?}");
    installed.scale_dns(2);

    cluster.run(&["create", "namespace", "elsewhere"]).unwrap();
    cluster.create(&not_running()).unwrap();
    cluster.run(&["create", "role", "lister", NAMESPACE, "--verb=list", "--resource=pods"]).unwrap();
    let lister = laptop.token("lister", "lister");
    let admin = Some(cluster.kubeconfig.as_path());
    let with = |name: &str, server: &str, token: &str| laptop.kubeconfig(name, server, token);
    let (lister, stranger) = (with("lister", &server, &lister), with("stranger", &server, "not-a-token"));
    let closed = with("closed", &format!("https://{HOST}:1"), &token);
    let unknown = with("unknown", "https://api.nowhere.example:6443", &token);
    for (kubeconfig, words, said) in [
        (None, &["--context=c"][..], "no kubeconfig: "),
        (None, &["--kubeconfig=/nowhere"], "no kubeconfig: /nowhere is not there"),
        (Some(reader.as_path()), &["--context=other"], "other"),
        (Some(&closed), &[], "can't be reached: Connection refused"),
        (Some(&unknown), &[], "api.nowhere.example is not known to the name servers of /etc/resolv.conf"),
        (Some(&stranger), &[], "does not accept the credentials of the kubeconfig (401 Unauthorized)"),
        (Some(&reader), &["--namespace=default"], "cannot list resource \"pods\""),
        (admin, &["--namespace=default"], "no correlator pod in namespace default"),
        (Some(&lister), &[], "needed are `get` and `create` of pods/portforward in nslookout"),
        (admin, &["--namespace=elsewhere"], "elsewhere/correlator does not run: ErrImageNeverPull"),
    ] {
        let told = eventually(|| {
            let output = laptop.status(kubeconfig, words);
            (text(&output.stderr).contains(said)).then_some(output)
        });
        let output = told.unwrap_or_else(|| laptop.status(kubeconfig, words));
        let line = text(&output.stderr);
        assert!(line.contains(said), "{words:?}: {line}");
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{words:?}: {line}");
    }
    let output = laptop.status(admin, &["--api=127.0.0.1:9853", "--context=c"]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    for made in ["rolebinding/reader", "rolebinding/lister", "role/lister"] {
        cluster.run(&["delete", NAMESPACE, made]).unwrap();
    }
    cluster.run(&["delete", "namespace", "elsewhere", "--wait=false"]).unwrap();
    installed.calm();
}

/// A correlator that waits for an image that nobody has.
fn not_running() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "correlator", "namespace": "elsewhere", "labels": {
            "app.kubernetes.io/name": "nslookout", "app.kubernetes.io/component": "correlator",
        } },
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{ "name": "correlator", "image": "docker.io/library/none:1", "imagePullPolicy": "Never" }],
        },
    })
}

fn helm_test(installed: &Installed) {
    let mut helm = installed.helm();
    let said = command::run(helm.args(["test", "nslookout", NAMESPACE, "--timeout=60s"]), None).unwrap();
    assert!(said.contains("Succeeded"), "{said}");
    let left = installed.cluster.run(&["get", "pods", NAMESPACE, "--output=name"]).unwrap();
    assert!(!left.contains("nslookout-test"), "{left}");
}

/// The real API server takes what several values make, strictly: an unknown or repeated field is an error.
fn dry_runs(installed: &Installed) {
    for crd in prometheus_operator_crds().unwrap() {
        let file = format!("--filename={}", crd.display());
        installed.cluster.run(&["apply", "--server-side", &file]).unwrap();
    }
    let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
    installed.cluster.run(&wait).unwrap();
    let digest = format!("image.digest=sha256:{}", "0".repeat(64));
    let monitoring =
        ["--api-versions=monitoring.coreos.com/v1/PodMonitor,monitoring.coreos.com/v1/PrometheusRule"];
    let annotation = "prober.podAnnotations.linkerd\\.io/inject=enabled";
    let label = "podMonitor.labels.app\\.kubernetes\\.io/name=other";
    let full =
        [&monitoring[..], &["--set=config.alerting=prometheus", "--set=networkPolicy.enabled=true"]].concat();
    let (digest, annotation, label) =
        (format!("--set={digest}"), format!("--set-string={annotation}"), format!("--set={label}"));
    let twice = [&monitoring[..], &[annotation.as_str(), label.as_str()]].concat();
    for (values, kinds) in [
        (vec![], &["daemonset.apps/dry-nslookout-node", "pod/dry-nslookout-test"][..]),
        (full, &["podmonitor.monitoring", "prometheusrule.monitoring", "networkpolicy"]),
        (twice, &["daemonset.apps/dry-nslookout-prober", "podmonitor.monitoring"]),
        (
            vec![digest.as_str(), "--set=node.enabled=false", "--set=resourceQuota.enabled=false"],
            &["deployment"],
        ),
    ] {
        let objects = template(installed, "dry", &values);
        let applied = apply(installed, &["--dry-run=server", "--validate=strict"], &objects);
        for kind in kinds {
            assert!(applied.contains(kind), "{values:?}: {kind} in\n{applied}");
        }
        assert!(!applied.contains("Warning"), "{values:?}: {applied}");
    }
}

fn upgraded_and_rolled_back_under_lookups(installed: &Installed) {
    let newer = tempfile::tempdir().unwrap();
    command::run(Command::new("cp").arg("-r").arg(chart()).arg(newer.path()), None).unwrap();
    let newer = newer.path().join("nslookout");
    let file = fs::read_to_string(newer.join("Chart.yaml")).unwrap();
    let present = concat!("version: ", env!("CARGO_PKG_VERSION"));
    assert!(file.contains(present), "{file}");
    fs::write(newer.join("Chart.yaml"), file.replacen(present, "version: 0.99.0", 1)).unwrap();

    let callers = Callers::start(&installed.cluster);
    thread::sleep(Duration::from_secs(2));
    let mut upgrade = installed.helm();
    upgrade.args(["upgrade", "nslookout"]).arg(&newer).args([
        NAMESPACE,
        "--reuse-values",
        "--set=image.tag=next",
    ]);
    command::run(upgrade.args(["--wait", "--timeout=180s"]), None).unwrap();
    let images = || {
        let path = "--output=jsonpath={.items[*].spec.containers[*].image}";
        installed.cluster.run(&["get", "pods", NAMESPACE, path]).unwrap()
    };
    let all_are = |tag: &str| {
        let images = images();
        images.split(' ').count() == 5 && images.split(' ').all(|image| image.ends_with(tag))
    };
    assert!(eventually(|| all_are(":next").then_some(())).is_some(), "{}", images());
    installed.wait_for("upgraded, it is healthy and sees everything", |status| {
        status.state == "healthy" && sees_everything(status)
    });
    // The CRDs came meanwhile: what `auto` means.
    installed.cluster.run(&["get", "podmonitor", "nslookout", NAMESPACE]).unwrap();

    let mut rollback = installed.helm();
    rollback.args(["rollback", "nslookout", "1", NAMESPACE, "--wait", "--timeout=180s"]);
    command::run(&mut rollback, None).unwrap();
    let before = concat!(":", env!("CARGO_PKG_VERSION"));
    assert!(eventually(|| all_are(before).then_some(())).is_some(), "{}", images());
    installed.wait_for("rolled back, it is healthy and sees everything", |status| {
        status.state == "healthy" && sees_everything(status) && status.incidents.is_empty()
    });
    let tally = callers.tally();
    println!("{} lookups during upgrade and rollback, {} lost", tally.made, tally.lost.len());
    assert!(tally.made > 1_000 && tally.lost.is_empty(), "{tally:#?}");
}

fn applied_by_kubectl_without_node_agents(installed: &Installed) {
    let objects = template(installed, "nslookout", &["--skip-tests", "--set=node.enabled=false"]);
    apply(installed, &[], &objects);
    installed.wait_for("all but the node agents run under PodSecurity restricted", |status| {
        let probes = |&node: &&str| is(status, "prober", node, "looked").is_some();
        status.state == "healthy" && NODES.iter().all(probes)
    });
    let mut delete = installed.cluster.kubectl();
    command::run(delete.args(["delete", "--filename=-"]), Some(&objects)).unwrap();
    installed.nothing_left();
}

fn refused_by_pod_security(installed: &Installed) {
    let mut install = installed.cluster.administrator(&helm4().unwrap());
    install
        .args(["install", "nslookout"])
        .arg(chart())
        .args([NAMESPACE, "--set", IMAGE[0], "--set", IMAGE[1]]);
    command::run(&mut install, None).unwrap();
    let refused = "the pods of DaemonSet nslookout/nslookout-node are refused: violates PodSecurity \\\"baseline:latest\\\"";
    let status = installed.wait_for("the refusal is told for both nodes", |status| {
        NODES.iter().all(|node| {
            ["drops", "conntrack-table", "conntrack-counters"]
                .iter()
                .all(|one| is(status, one, node, "denied").is_some_and(|line| line.contains(refused)))
                && is(status, "prober", node, "looked").is_some()
        })
    });
    println!("{}", is(&status, "drops", NODES[0], "denied").unwrap());

    enforce(installed, "privileged");
    // The controller tries again ever more seldom.
    installed.cluster.run(&["rollout", "restart", "daemonset/nslookout-node", NAMESPACE]).unwrap();
    installed.wait_for("with the label it sees everything", sees_everything);
    uninstall(&mut installed.cluster.administrator(&helm4().unwrap()));
    installed.nothing_left();
}

fn enforce(installed: &Installed, level: &str) {
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    installed.cluster.run(&["label", "--overwrite", "namespace", "nslookout", &label]).unwrap();
}

fn template(installed: &Installed, release: &str, values: &[&str]) -> String {
    let mut helm = installed.helm();
    helm.args(["template", release, KUBERNETES])
        .arg(chart())
        .args([NAMESPACE, "--set", IMAGE[0], "--set", IMAGE[1]]);
    command::run(helm.args(values), None).unwrap()
}

fn apply(installed: &Installed, words: &[&str], objects: &str) -> String {
    let mut kubectl = installed.cluster.kubectl();
    let output = command::output(kubectl.args(["apply", "--filename=-"]).args(words), Some(objects)).unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

fn uninstall(helm: &mut Command) {
    let words = ["uninstall", "nslookout", NAMESPACE, "--wait", "--timeout=60s"];
    command::run(helm.args(words), None).unwrap();
}

/// The line of coverage, as JSON.
fn is(status: &lab::trial::Status, observer: &str, place: &str, state: &str) -> Option<String> {
    let mut lines = status.coverage.iter();
    let line = lines.find(|line| line["observer"] == observer && line["place"] == place)?;
    (line["state"] == state).then(|| line.to_string())
}

/// Asks for twenty seconds at most.
fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(20) {
        if let Some(found) = ask() {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(300));
    }
    None
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
