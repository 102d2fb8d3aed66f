//! Claims about Alertmanagers that Services lead to: a real API server, and real Alertmanagers behind its Services.
//!
//! The API server takes no endpoint on loopback. So these tests are in a network namespace of their own, with pods'
//! addresses on its loopback device.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use evidence::{Inventory, WallTime};
use nix::sched::{CloneFlags, setns, unshare};
use nslookout::alertmanager::{Alert, Legacy, Pusher, of};
use nslookout::config::Config;
use nslookout::metrics::Metrics;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::alert::alert;
use crate::control_plane::{ControlPlane, eventually_within};
use crate::objects::{create_account, create_running, named, pod};
use crate::program::{Alertmanager, eventually};

const SERVICES: &str = "/api/v1/namespaces/monitoring/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/monitoring/endpointslices";
const PODS: &str = "/api/v1/namespaces/monitoring/pods";

/// This test's thread, and all that it starts, in a network namespace of its own. It ends with them.
struct OwnNetwork(fs::File);

impl OwnNetwork {
    fn enter() -> Self {
        let before = fs::File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for words in ["link set lo up", "address add 10.244.9.0/24 dev lo"] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "ip {words}");
        }
        Self(before)
    }
}

impl Drop for OwnNetwork {
    fn drop(&mut self) {
        assert_eq!(setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET), Ok(()));
    }
}

fn address(index: u8) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 244, 9, index).into(), 9093)
}

/// Endpoints by their number and whether they are ready and serving.
fn endpoints(list: &[(u8, bool, bool)]) -> Value {
    list.iter()
        .map(|(index, ready, serving)| {
            json!({
                "addresses": [address(*index).ip().to_string()],
                "conditions": {"ready": ready, "serving": serving},
                "targetRef": {"kind": "Pod", "namespace": "monitoring", "name": format!("am-{index}")},
            })
        })
        .collect()
}

async fn create_service(plane: &ControlPlane, list: &[(u8, bool, bool)]) {
    let ports = json!([
        {"name": "http-web", "port": 80, "protocol": "TCP", "targetPort": 9093},
        {"name": "mesh", "port": 9094, "protocol": "TCP", "targetPort": 9094},
    ]);
    let mut service = named("alertmanager", json!({}));
    service["spec"] = json!({"clusterIP": "None", "ports": ports});
    plane.create(SERVICES, service).await;
    let slice = json!({
        "metadata": {"name": "am", "labels": {"kubernetes.io/service-name": "alertmanager"}},
        "addressType": "IPv4",
        "endpoints": endpoints(list),
        "ports": [{"name": "http-web", "port": 9093}, {"name": "mesh", "port": 9094}],
    });
    plane.create(SLICES, slice).await;
}

async fn set_endpoints(plane: &ControlPlane, list: &[(u8, bool, bool)]) {
    plane.patch(&format!("{SLICES}/am"), json!({"endpoints": endpoints(list)})).await;
}

/// Pushes as a correlator with this configuration would.
fn push(plane: &ControlPlane, alertmanagers: &Value, metrics: &Metrics) -> Pusher {
    let kubeconfig = plane.kubeconfig("admin", "admin-token");
    let text = json!({"cluster": {"kubeconfig": kubeconfig}, "alertmanagers": alertmanagers}).to_string();
    let mut inventory = Inventory::default();
    inventory.service.addresses = vec!["10.96.0.10:53".parse().unwrap()];
    // The sender may go: what it last said stays.
    of(&Config::parse(&text).unwrap(), watch::channel(Arc::new(inventory)).1, Legacy::default(), metrics)
        .unwrap()
}

async fn until_noted(pusher: &Pusher, about: &str, words: &str) {
    eventually_within(Duration::from_secs(15), words, async || {
        let notes = pusher.notes();
        if notes.iter().any(|note| note.about == about && note.what.contains(words)) {
            Ok(())
        } else {
            Err(notes)
        }
    })
    .await;
}

async fn until_metric(metrics: &Metrics, line: &str, is_there: bool) {
    eventually_within(Duration::from_secs(15), line, async || {
        let page = String::from_utf8_lossy(&metrics.page()).into_owned();
        if page.contains(line) == is_there { Ok(()) } else { Err(()) }
    })
    .await;
}

#[tokio::test]
async fn alertmanagers_come_and_go_with_their_service_and_nobody_is_told_twice() {
    let _network = OwnNetwork::enter();
    let mut plane = ControlPlane::start().await;
    create_account(&plane, "monitoring", "default").await;
    let metrics = Metrics::new().unwrap();
    let service = json!({"namespace": "monitoring", "name": "alertmanager", "port": "http-web"});
    let pusher =
        push(&plane, &json!({"services": [service], "interval": "700ms", "lasting": "2800ms"}), &metrics);
    let about = "Alertmanagers of monitoring/alertmanager";
    until_noted(&pusher, about, "there is no such Service").await;
    let endpoints_are = |count: u8| {
        format!("nslookout_alertmanager_service_endpoints{{service=\"monitoring/alertmanager\"}} {count}\n")
    };
    until_metric(&metrics, &endpoints_are(0), true).await;

    create_service(&plane, &[]).await;
    until_noted(&pusher, about, "has no endpoints").await;
    let mut first = Alertmanager::start_at(address(1), None).await;
    set_endpoints(&plane, &[(1, true, true)]).await;
    let took = eventually("it is told", async || first.fires("NslookoutWatchdog").await).await;
    println!("an endpoint is told {took:?} after it came");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(pusher.notes(), []);
    until_metric(&metrics, &endpoints_are(1), true).await;

    // One is over before others come, and one fires on.
    let (one, two) = (alert("One", WallTime::now()), alert("Two", WallTime::now()));
    pusher.set(vec![one.clone(), two.clone()]);
    eventually("people hear of both", async || first.told("One") == (1, 0) && first.told("Two") == (1, 0))
        .await;
    pusher.set(vec![one.clone(), Alert { ends_at: Some(WallTime::now()), ..two.clone() }]);
    eventually("people hear that Two is over", async || first.told("Two") == (1, 1)).await;

    // Not ready and yet serving: told. Neither: not begun with.
    let second = Alertmanager::start_at(address(2), None).await;
    let third = Alertmanager::start_at(address(3), None).await;
    set_endpoints(&plane, &[(1, true, true), (2, false, true), (3, false, false)]).await;
    eventually("the second is told of One", async || second.told("One") == (1, 0)).await;
    // The first serves no more, and would resolve what fires if it were told no more.
    set_endpoints(&plane, &[(1, false, false), (2, true, true), (3, false, false)]).await;
    until_metric(&metrics, &endpoints_are(1), true).await;
    sleep(Duration::from_secs(4)).await;
    assert!(first.fires("One").await);
    assert_eq!((first.told("One"), first.told("Two")), ((1, 0), (1, 1)));
    // What the first told people of is not told anew by the second; the third was told nothing.
    assert_eq!((second.told("One"), second.told("Two")), ((1, 0), (0, 0)));
    assert!(third.firing().await.is_empty());

    // The first goes.
    let pushes =
        |index: u8| format!("nslookout_alertmanager_sends_total{{alertmanager=\"{}\"", address(index));
    until_metric(&metrics, &pushes(1), true).await;
    set_endpoints(&plane, &[(2, true, true)]).await;
    until_metric(&metrics, &pushes(1), false).await;
    until_metric(&metrics, &pushes(2), true).await;

    // The API server goes: those who are known are told.
    plane.stop_api();
    until_noted(&pusher, about, "can't be read: Connection refused").await;
    let three = alert("Three", WallTime::now());
    pusher.set(vec![one.clone(), three.clone()]);
    eventually("the second hears of Three", async || second.told("Three") == (1, 0)).await;
    pusher.set(vec![Alert { ends_at: Some(WallTime::now()), ..one }, three]);
    eventually("the second hears the end of One", async || second.told("One") == (1, 1)).await;

    // It is back, and the first as well, started anew: it hears what fires, and nothing of what is over.
    first.down().await;
    first.up().await;
    plane.start_api().await;
    set_endpoints(&plane, &[(1, true, true), (2, true, true)]).await;
    eventually("the first hears of Three", async || first.told("Three") == (1, 0)).await;
    eventually("nothing is noted", async || pusher.notes().is_empty()).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!((first.told("Two"), second.told("Two")), ((1, 1), (0, 0)));
    assert_eq!((first.told("One").0, second.told("One")), (1, (1, 1)));

    // A port that isn't there is told with those that are.
    plane
        .patch(&format!("{SERVICES}/alertmanager"), json!({"spec": {"ports": [{"name": "web", "port": 81}]}}))
        .await;
    until_noted(&pusher, about, "it has no TCP port http-web").await;
    assert!(pusher.notes()[0].mend.contains("81 (web)"), "{:?}", pusher.notes());
}

#[tokio::test]
async fn a_pager_that_needs_cluster_dns_is_told_beforehand() {
    let _network = OwnNetwork::enter();
    let plane = ControlPlane::start().await;
    create_account(&plane, "monitoring", "default").await;
    let with = |index: u8, spec: Value| {
        let mut pod = pod(&format!("am-{index}"), Some("node-a"), "default", "alertmanager");
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        pod
    };
    let ip = |index: u8| address(index).ip().to_string();
    let in_host_network = json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet", "containers": [
        {"name": "alertmanager", "image": "am", "ports": [{"containerPort": 9093}]},
    ]});
    create_running(&plane, "monitoring", with(1, json!({})), &[&ip(1)]).await;
    create_running(&plane, "monitoring", with(2, json!({"dnsPolicy": "Default"})), &[&ip(2)]).await;
    create_running(&plane, "monitoring", with(3, in_host_network), &[&ip(3)]).await;
    create_service(&plane, &[(1, true, true), (2, true, true)]).await;

    let metrics = Metrics::new().unwrap();
    let service = json!({"namespace": "monitoring", "name": "alertmanager", "port": 80});
    // The third by its address alone; the fourth is no pod's.
    let addresses = [3, 4].map(|index| format!("http://{}", address(index)));
    let pusher = push(&plane, &json!({"services": [service], "addresses": addresses}), &metrics);
    until_noted(&pusher, "Alertmanager monitoring/am-1", "(dnsPolicy ClusterFirst)").await;
    until_noted(&pusher, "Alertmanager monitoring/am-3", "(dnsPolicy ClusterFirstWithHostNet)").await;
    assert!(pusher.notes().iter().all(|note| note.mend.contains("dnsPolicy: Default")));
    assert_eq!(pusher.notes().len(), 2, "{:?}", pusher.notes());
    let needs = |index: u8| {
        format!("nslookout_alertmanager_needs_cluster_dns{{alertmanager=\"{}\"}}", address(index))
    };
    for (index, value) in [(1, " 1\n"), (2, " 0\n"), (3, " 1\n")] {
        until_metric(&metrics, &(needs(index) + value), true).await;
    }
    until_metric(&metrics, &needs(4), false).await;

    // Mended: its pod is made anew, at another address as it happens.
    plane.delete(&format!("{PODS}/am-1")).await;
    create_running(&plane, "monitoring", with(1, json!({"dnsPolicy": "Default"})), &[&ip(5)]).await;
    let mut list = endpoints(&[(5, true, true), (2, true, true)]);
    list[0]["targetRef"]["name"] = json!("am-1");
    plane.patch(&format!("{SLICES}/am"), json!({"endpoints": list})).await;
    eventually_within(Duration::from_secs(15), "one warning is left", async || {
        let about: Vec<_> = pusher.notes().into_iter().map(|note| note.about).collect();
        if about == ["Alertmanager monitoring/am-3"] { Ok(()) } else { Err(about) }
    })
    .await;
}
