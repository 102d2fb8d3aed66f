//! Claims about reading and following an inventory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use evidence::Observation;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::list::{Found, List, Problem};
use super::*;

fn service(name: &str, ips: &[&str], udp: u16) -> Value {
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": [
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns-tcp"},
            {"name": "dns", "port": udp, "protocol": "UDP", "targetPort": "dns"},
            {"name": "metrics", "port": 9153},
        ]},
    })
}

fn slice(service: &str, endpoints: Value) -> Value {
    json!({
        "kind": "EndpointSlice",
        "metadata": {"name": "x", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints,
        "ports": [
            {"name": "metrics", "port": 9153, "protocol": "TCP"},
            {"name": "dns-tcp", "port": 5353, "protocol": "TCP"},
            {"name": "dns", "port": 5353, "protocol": "UDP"},
        ],
    })
}

fn found(items: &[Value], wanted: &[&str]) -> Result<Found, Problem> {
    let list = serde_json::from_value(json!({"apiVersion": "v1", "kind": "List", "items": items})).unwrap();
    let addresses = wanted.iter().map(|w| w.parse().unwrap()).collect();
    list::find(list, &NameServers { addresses, certain: false })
}

#[test]
fn several_slices_of_both_families_make_one_list_of_servers() {
    let items = [
        json!({"kind": "Secret", "spec": 7}),
        service("other", &["10.96.0.11"], 53),
        service("kube-dns", &["10.96.0.10", "fd00::10"], 53),
        slice(
            "kube-dns",
            json!([
                {"addresses": ["10.244.0.2"], "conditions": {"ready": true}, "nodeName": "node-a", "targetRef": {"kind": "Pod", "name": "coredns-1"}},
                {"addresses": ["10.244.1.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ]),
        ),
        slice(
            "kube-dns",
            json!([
                {"addresses": ["fd01::2"], "conditions": {"ready": false}},
                {"addresses": ["fd01::3"]},
                {"addresses": ["10.244.0.2"], "conditions": {"ready": false}},
            ]),
        ),
        slice("kube-dns", Value::Null),
        slice("other", json!([{"addresses": ["10.244.0.9"]}])),
    ];
    let Found { inventory, broken } = found(&items, &["[fd00::10]:53"]).unwrap();
    assert_eq!(broken, 0);
    assert_eq!(inventory.service.name, "kube-dns");
    let addresses: Vec<String> = inventory.service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.10:53", "[fd00::10]:53"]);
    let servers: Vec<_> = inventory.endpoints.iter().map(|e| (e.address.to_string(), e.serving)).collect();
    let expected = [
        ("10.244.0.2:5353", true),
        ("10.244.1.2:5353", true),
        ("[fd01::2]:5353", false),
        ("[fd01::3]:5353", true),
    ];
    assert_eq!(servers, expected.map(|(address, serving)| (address.to_owned(), serving)));
    let leaving: Vec<bool> = inventory.endpoints.iter().map(|e| e.leaving).collect();
    assert_eq!(leaving, [false, true, false, false]);
    assert_eq!(inventory.endpoints[0].name, "coredns-1");
    assert_eq!(inventory.endpoints[0].node.as_deref(), Some("node-a"));
    assert_eq!(inventory.endpoints[3].name, "[fd01::3]:5353");
}

#[test]
fn the_service_is_found_by_address_before_name() {
    let empty = slice("kube-dns", json!([]));
    let items = [service("kube-dns", &["10.96.0.10"], 53), service("mine", &["10.96.0.99"], 54), empty];
    let by_address = found(&items, &["10.96.0.99:54"]).unwrap().inventory.service;
    assert_eq!((by_address.name.as_str(), by_address.addresses[0].port()), ("mine", 54));
    // NodeLocal DNSCache's address belongs to no Service.
    assert_eq!(found(&items, &["169.254.20.10:53"]).unwrap().inventory.service.name, "kube-dns");
    assert_eq!(found(&items[1..], &[]).unwrap_err(), Problem::NoService);
    assert_eq!(found(&items[..1], &[]).unwrap_err(), Problem::NoSlices);
}

#[test]
fn no_endpoints_is_an_answer() {
    let items = [service("kube-dns", &["10.96.0.10"], 53), slice("kube-dns", json!([]))];
    assert_eq!(found(&items, &[]).unwrap().inventory.endpoints, []);
}

#[test]
fn pods_are_named_by_addresses_that_are_their_own() {
    let pod = |name: &str, spec: Value, status: Value| json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": spec, "status": status});
    let items = [
        service("kube-dns", &["10.96.0.10"], 53),
        slice("kube-dns", json!([])),
        pod(
            "a",
            json!({"nodeName": "node-a"}),
            json!({"podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}, {"ip": "fd01::5"}]}),
        ),
        pod("old", json!({}), json!({"podIP": "10.244.0.6"})),
        pod("host", json!({"hostNetwork": true}), json!({"podIP": "192.0.2.1"})),
        pod("done", json!({}), json!({"phase": "Succeeded", "podIP": "10.244.0.5"})),
        pod("pending", json!({}), json!({})),
        json!({"kind": "Pod", "metadata": 7}),
    ];
    let Found { inventory, broken } = found(&items, &[]).unwrap();
    let names: Vec<_> = inventory.pods.iter().map(|pod| (pod.name.as_str(), pod.addresses.len())).collect();
    assert_eq!(names, [("shop/a", 2), ("shop/old", 1)]);
    assert_eq!(broken, 1);
}

#[test]
fn a_pod_is_told_with_the_workload_that_people_know() {
    let owned = |name: &str, kind: &str, owner: &str, labels: Value| {
        let owners = json!([{"kind": kind, "name": owner, "controller": true}]);
        json!({
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels, "ownerReferences": owners},
            "status": {"podIP": "10.244.0.5"},
        })
    };
    let hash = json!({"pod-template-hash": "7d4b9c6f5d"});
    let items = [
        service("kube-dns", &["10.96.0.10"], 53),
        slice("kube-dns", json!([])),
        owned("a", "ReplicaSet", "web-7d4b9c6f5d", hash),
        owned("b", "ReplicaSet", "plain-7d4b9c6f5d", json!({})),
        owned("c", "Job", "report-29412000", json!({})),
        owned("d", "Job", "import-2", json!({})),
        owned("e", "DaemonSet", "agent", json!({})),
        owned("f", "Node", "node-a", json!({})),
    ];
    let pods = found(&items, &[]).unwrap().inventory.pods;
    let workloads: Vec<_> = pods.iter().map(|pod| pod.workload.as_deref()).collect();
    let expected = [
        Some("Deployment/web"),
        Some("ReplicaSet/plain-7d4b9c6f5d"),
        Some("CronJob/report"),
        Some("Job/import-2"),
        Some("DaemonSet/agent"),
        None,
    ];
    assert_eq!(workloads, expected);
}

#[test]
fn nodes_have_their_zones() {
    let node =
        |name: &str, labels: Value| json!({"kind": "Node", "metadata": {"name": name, "labels": labels}});
    let items = [
        service("kube-dns", &["10.96.0.10"], 53),
        slice("kube-dns", json!([])),
        node("a", json!({"topology.kubernetes.io/zone": "zone-1"})),
        node("b", json!({})),
    ];
    let nodes = found(&items, &[]).unwrap().inventory.nodes;
    let zones: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.zone.as_deref())).collect();
    assert_eq!(zones, [("a", Some("zone-1")), ("b", None)]);
}

#[test]
fn a_resolv_conf_of_pods_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    fs::write(&path, "nameserver 10.96.0.10\nnameserver fd00::a\n").unwrap();
    let config = ClusterConfig { resolv_conf: Some(path), ..ClusterConfig::default() };
    let asked = config.name_servers();
    assert_eq!(asked.addresses, ["10.96.0.10:53".parse().unwrap(), "[fd00::a]:53".parse().unwrap()]);
    assert!(asked.certain);
}

fn write(path: &Path, items: &[Value]) {
    let new = path.with_extension("new");
    fs::write(&new, json!({"kind": "List", "items": items}).to_string()).unwrap();
    fs::rename(new, path).unwrap();
}

async fn report(reports: &mut mpsc::Receiver<Report>) -> (Report, Duration) {
    let begin = Instant::now();
    let report = tokio::time::timeout(Duration::from_secs(9), reports.recv()).await.unwrap().unwrap();
    (report, begin.elapsed())
}

fn servers(report: &Report) -> Option<usize> {
    report.observations.first().map(|observation| match observation {
        Observation::Inventory(inventory) => inventory.endpoints.len(),
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn a_change_is_told_at_once_and_a_broken_file_keeps_the_last_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inventory.json");
    let kube_dns = service("kube-dns", &["10.96.0.10"], 53);
    let one = json!([{"addresses": ["10.244.0.2"]}]);
    let two = json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"]}]);
    let config = ClusterConfig { inventory: Some(path.clone()), ..ClusterConfig::default() };
    let (out, mut reports) = mpsc::channel(4);
    let mut inventory = watch(&config, out);
    assert_eq!(inventory.borrow_and_update().endpoints, []);

    let (missing, _) = report(&mut reports).await;
    assert_eq!(servers(&missing), None);
    assert!(
        matches!(&missing.coverage[0].state, CoverageState::Denied { missing } if missing.contains("inventory.json"))
    );

    write(&path, &[kube_dns.clone(), slice("kube-dns", one)]);
    let (first, wait) = report(&mut reports).await;
    assert_eq!(servers(&first), Some(1));
    assert_eq!(first.coverage[0].state, CoverageState::Looked { lost: 0 });
    assert!(wait < Duration::from_secs(2), "{wait:?}");
    assert!(inventory.has_changed().unwrap());
    assert_eq!(inventory.borrow_and_update().endpoints.len(), 1);

    fs::write(&path, "{\"items\": [{\"kind\": \"Serv").unwrap();
    let (broken, _) = report(&mut reports).await;
    assert_eq!(servers(&broken), Some(1));
    assert!(
        matches!(&broken.coverage[0].state, CoverageState::Denied { missing } if missing.contains("EOF"))
    );
    assert!(!inventory.has_changed().unwrap());

    write(&path, &[kube_dns, slice("kube-dns", two)]);
    let (second, _) = report(&mut reports).await;
    assert_eq!(servers(&second), Some(2));
    assert_eq!(second.coverage[0].state, CoverageState::Looked { lost: 0 });

    let (again, wait) = report(&mut reports).await;
    assert_eq!(servers(&again), Some(2));
    assert!((4..7).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn without_a_file_the_configuration_speaks_and_says_what_it_does_not_know() {
    let config: ClusterConfig =
        serde_json::from_value(json!({"service": {"addresses": ["10.96.0.10"]}})).unwrap();
    let (out, mut reports) = mpsc::channel(4);
    let inventory = watch(&config, out);
    assert_eq!(inventory.borrow().service.addresses, ["10.96.0.10:53".parse().unwrap()]);
    let (unknown, _) = report(&mut reports).await;
    assert_eq!(servers(&unknown), None);
    assert!(matches!(unknown.coverage[0].state, CoverageState::Unsupported { .. }));

    let config = ClusterConfig { servers: vec![ServerAddress("10.244.0.2:5353".parse().unwrap())], ..config };
    let (out, mut reports) = mpsc::channel(4);
    drop(watch(&config, out));
    let (known, _) = report(&mut reports).await;
    assert_eq!(servers(&known), Some(1));
    assert_eq!(known.coverage[0].state, CoverageState::Looked { lost: 0 });
}

#[test]
fn no_text_makes_it_panic() {
    let nobody = NameServers { addresses: Vec::new(), certain: false };
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "{\"items\": null}",
        "{\"items\": [null, 7, [], {\"kind\": 7}, {\"kind\": \"Pod\"}]}",
    ] {
        if let Ok(list) = serde_json::from_str(text) {
            assert!(list::find(list, &nobody).is_err(), "{text}");
        }
    }
    let deep = format!("{{\"items\": {}", "[".repeat(100_000));
    assert!(serde_json::from_str::<List>(&deep).is_err());
}
