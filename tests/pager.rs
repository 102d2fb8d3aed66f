//! Alertmanagers as pods behind a Service, as most clusters have them: each is found and told, while DNS is dead and they are
//! replaced, and that they could not find their pager is said beforehand.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use e2e::installed::{Installed, NAMESPACE};
use lab::command;
use lab::kubernetes::Options;
use lab::kubernetes::alertmanager::IMAGE;
use serde_json::{Value, json};

/// Two of them, with Kubernetes' own default of dnsPolicy, and a Secret for the correlator.
fn manifests() -> Value {
    let labels = json!({"app": "am"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "monitoring"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "am", "namespace": "monitoring"},
         "data": {"am.json": json!({"route": {"receiver": "x"}, "receivers": [{"name": "x"}]}).to_string()}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "am", "namespace": "monitoring"},
         "spec": {"clusterIP": "None", "selector": labels, "ports": [{"name": "web", "port": 9093}]}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "am-token", "namespace": "nslookout"},
         "stringData": {"token": "abc"}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "am", "namespace": "monitoring"},
         "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "automountServiceAccountToken": false,
            "containers": [{"name": "am", "image": IMAGE, "imagePullPolicy": "Never",
                "args": ["--config.file=/etc/am/am.json", "--storage.path=/am", "--web.listen-address=:9093", "--cluster.listen-address="],
                "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9093}, "periodSeconds": 1},
                "volumeMounts": [{"name": "c", "mountPath": "/etc/am"}, {"name": "d", "mountPath": "/am"}]}],
            "volumes": [{"name": "c", "configMap": {"name": "am"}}, {"name": "d", "emptyDir": {}}]}}}},
    ]})
}

#[test]
fn alertmanagers_are_found_by_their_service_and_their_need_of_dns_is_told_beforehand() {
    let installed = Installed::raise(&Options::new(format!("pager-{}", std::process::id())));
    let cluster = &installed.cluster;
    let folder = tempfile::tempdir().unwrap();
    cluster.load_alertmanager().unwrap();
    let file = folder.path().join("m.json");
    std::fs::write(&file, manifests().to_string()).unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).unwrap();
    let rollout = ["rollout", "status", "deployment/am", "--namespace=monitoring", "--timeout=60s"];
    cluster.run(&rollout).unwrap();
    let service = "config.alertmanagers.services[0]";
    let service = format!("{service}.namespace=monitoring,{service}.name=am,{service}.port=web");
    // Alertmanager takes any token; without the mounted file nothing would be sent.
    let token = "config.alertmanagers.bearerTokenFile=/run/secrets/alertmanager/token";
    installed.install(&["--set", &service, "--set", "alertmanager.secretName=am-token", "--set", token]);
    let status = || {
        let mut kubectl = cluster.kubectl();
        kubectl.args(["exec", NAMESPACE, "deploy/nslookout-correlator", "--", "/nslookout", "status"]);
        String::from_utf8_lossy(&command::output(&mut kubectl, None).unwrap().stdout).into_owned()
    };
    // How many of them have it now.
    let alerts = |name: &str| -> usize {
        let pods = cluster.pods("app=am").unwrap();
        pods.iter()
            .filter(|pod| pod.phase == "Running")
            .filter(|pod| {
                let node = cluster.node("node-a").unwrap();
                let at = SocketAddr::new(*pod.addresses.first().unwrap(), 9093);
                lab::alertmanager::http_get(&node.netns, at, "/api/v2/alerts")
                    .is_ok_and(|page| page.1.contains(name))
            })
            .count()
    };
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < Duration::from_secs(60), "{what}\n{}\n{}", status(), installed.log());
            thread::sleep(Duration::from_millis(300));
        }
        println!("{what}: {:.1} s", begin.elapsed().as_secs_f64());
    };
    until("both are told", &|| alerts("NslookoutWatchdog") == 2);
    until("both are noted", &|| status().matches("it asks nobody but cluster DNS").count() == 2);
    installed.scale_dns(0);
    until("both hear that DNS is dead", &|| alerts("no-endpoints") == 2);
    // Both are replaced, with the fix, in the midst of it.
    cluster
        .run(&[
            "patch",
            "deployment/am",
            "--namespace=monitoring",
            "-p",
            r#"{"spec":{"template":{"spec":{"dnsPolicy":"Default"}}}}"#,
        ])
        .unwrap();
    cluster.run(&rollout).unwrap();
    until("both new ones hear it", &|| {
        cluster.pods("app=am").unwrap().len() == 2 && alerts("no-endpoints") == 2
    });
    until("nothing is noted", &|| {
        let status = status();
        status.contains("no-endpoints") && !status.contains("it asks nobody but cluster DNS")
    });
    installed.cluster.down().unwrap();
}
