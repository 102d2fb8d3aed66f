//! Claims about the inventory that the API server gives.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use evidence::{Coverage, CoverageState, Inventory, Observation, Observer, Report, WallTime};
use nslookout::inventory::{ClusterConfig, Followed, follow};
use nslookout::kubernetes::Pod;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::control_plane::{ControlPlane, eventually_within, get};
use crate::objects::*;

/// The inventory as an nslookout with this kubeconfig knows it.
struct Watched {
    followed: Followed,
    reports: mpsc::Receiver<Report>,
    lines: BTreeMap<String, Coverage>,
    /// As correlate was told it.
    told: Option<Arc<Inventory>>,
}

impl Watched {
    fn start(kubeconfig: PathBuf, name_servers: &[&str]) -> Self {
        let addresses = name_servers.iter().map(|server| json!(server)).collect::<Vec<_>>();
        let config: ClusterConfig =
            serde_json::from_value(json!({"kubeconfig": kubeconfig, "service": {"addresses": addresses}}))
                .unwrap();
        let (out, reports) = mpsc::channel(64);
        Self { followed: follow(&config, out), reports, lines: BTreeMap::new(), told: None }
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            for line in report.coverage {
                self.lines.insert(line.place.clone(), line);
            }
            for observation in report.observations {
                let Observation::Inventory(inventory) = observation else { panic!("{observation:?}") };
                self.told = Some(inventory);
            }
        }
    }

    fn present(&self) -> Arc<Inventory> {
        self.followed.inventory.borrow().clone()
    }

    fn age(&self) -> Option<Duration> {
        self.followed.as_of.borrow().map(|as_of| WallTime::now().since(as_of))
    }

    /// What a source says of itself: "looked", or why it can't.
    fn line(&self, place: &str) -> String {
        match self.lines.get(place).map(|line| &line.state) {
            None => "nothing".to_owned(),
            Some(CoverageState::Looked { lost }) => format!("looked, lost {lost}"),
            Some(CoverageState::Denied { missing }) => missing.clone(),
            Some(CoverageState::Unsupported { why }) => why.clone(),
        }
    }

    async fn until(&mut self, what: &str, check: impl Fn(&Self) -> bool) -> Duration {
        let deadline = Duration::from_secs(25);
        eventually_within(deadline, what, async || {
            self.take_reports();
            if check(self) { Ok(()) } else { Err((self.present(), self.lines.clone())) }
        })
        .await
    }

    async fn until_line(&mut self, place: &str, words: &str) -> Duration {
        self.until(&format!("{place}: {words}"), |it| it.line(place).contains(words)).await
    }
}

const ALL: [&str; 4] =
    ["kubernetes/services", "kubernetes/endpointslices", "kubernetes/pods", "kubernetes/nodes"];

fn servers(inventory: &Inventory) -> Vec<String> {
    let mut servers: Vec<_> = inventory.endpoints.iter().map(|e| e.address.to_string()).collect();
    servers.sort();
    servers
}

#[tokio::test]
async fn the_inventory_follows_the_api_server_and_outlives_it() {
    let mut plane = ControlPlane::start().await;
    create_dns(&plane, "kube-dns", ["10.96.0.10", "fd00:10:96::a"]).await;
    create_dns(&plane, "other", ["10.96.0.11", "fd00:10:96::b"]).await;
    create_account(&plane, "shop", "default").await;
    create_account(&plane, "kube-system", "default").await;
    plane.create(NODES, named("node-a", json!({"topology.kubernetes.io/zone": "zone-1"}))).await;
    let mut web = pod("web-7d4b9c6f5d-abcde", Some("node-a"), "default", "web");
    web["metadata"]["labels"] = json!({"pod-template-hash": "7d4b9c6f5d"});
    web["metadata"]["ownerReferences"] = json!([
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b9c6f5d", "uid": "1", "controller": true},
    ]);
    create_running(&plane, "shop", web, &["10.244.1.7", "fd01::1:7"]).await;
    let ended = pod("job-1", Some("node-a"), "default", "job");
    create_running(&plane, "shop", ended, &["10.244.1.8"]).await;

    let mut watched = Watched::start(plane.kubeconfig("admin", "admin-token"), &["10.96.0.10"]);
    watched.until("all is read", |it| ALL.iter().all(|place| it.line(place) == "looked, lost 0")).await;
    watched.until("all pods are told", |it| it.told.as_ref().is_some_and(|told| told.pods.len() == 2)).await;
    let inventory = watched.present();
    assert_eq!(inventory.service.name, "kube-dns");
    assert!(inventory.service.is_virtual);
    let addresses: Vec<_> = inventory.service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.10:53", "[fd00:10:96::a]:53"]);
    let all = ["10.244.1.2:5353", "10.244.2.2:5353", "[fd01::1:2]:5353", "[fd01::2:2]:5353"];
    assert_eq!(servers(&inventory), all);
    let web = inventory.pods.iter().find(|pod| pod.name.starts_with("shop/web")).unwrap();
    assert_eq!(web.workload.as_deref(), Some("Deployment/web"));
    assert_eq!((web.node.as_deref(), web.addresses.len()), (Some("node-a"), 2));
    assert_eq!((inventory.nodes.len(), inventory.nodes[0].zone.as_deref()), (1, Some("zone-1")));

    // Endpoints go and come, and are told at once.
    let v4 = format!("{SLICES}/kube-dns-ipv4");
    plane.patch(&v4, json!({"endpoints": endpoints(&["10.244.1.2"])})).await;
    let wait = watched.until("a server left", |it| it.present().endpoints.len() == 3).await;
    assert!(wait < Duration::from_millis(500), "{wait:?}");
    plane.patch("/api/v1/namespaces/shop/pods/job-1/status", json!({"status": {"phase": "Succeeded"}})).await;
    watched.until("a pod that ended gives its address back", |it| it.present().pods.len() == 1).await;
    assert!(watched.age().unwrap() < Duration::from_secs(6));

    // Away: the last state stays, and its age is told.
    plane.stop_api();
    let wait = watched.until_line("kubernetes/endpointslices", "does not answer").await;
    assert!(wait < Duration::from_secs(10), "{wait:?}");
    let words = watched.line("kubernetes/pods");
    assert!(
        words.contains(&plane.address.to_string()) && words.contains("the last state is used, of "),
        "{words}"
    );
    sleep(Duration::from_secs(6)).await;
    watched.take_reports();
    assert!(watched.age().unwrap() > Duration::from_secs(5));
    assert_eq!(watched.present().endpoints.len(), 3);
    assert_eq!(watched.told.as_ref().unwrap().endpoints.len(), 3);

    // Back: what changed meanwhile and what changes now is known soon.
    plane.start_api().await;
    plane.patch(&v4, json!({"endpoints": endpoints(&["10.244.1.2", "10.244.3.3"])})).await;
    let wait = watched.until("the new server is known", |it| servers(&it.present()).len() == 4).await;
    assert!(wait < Duration::from_secs(8), "{wait:?}");
    watched.until("all looks again", |it| ALL.iter().all(|place| it.line(place) == "looked, lost 0")).await;
    watched.until("it is fresh", |it| it.age().unwrap() < Duration::from_secs(3)).await;

    // A pod reaches it by its mounted files, by address.
    std::fs::write(plane.folder().join("token"), "admin-token").unwrap();
    let port = Some(plane.address.port().to_string());
    let here = Pod { host: Some(plane.address.ip().to_string()), port, folder: plane.folder().to_owned() };
    assert!(get(&here.connect().unwrap().client, NODES).await.unwrap().contains("node-a"));
}

#[tokio::test]
async fn what_is_no_coredns_and_no_service_is_named_as_such() {
    let plane = ControlPlane::start().await;
    create_dns(&plane, "kube-dns", ["10.96.0.10", "fd00:10:96::a"]).await;
    create_account(&plane, "kube-system", "default").await;
    let kubeconfig = plane.kubeconfig("admin", "admin-token");

    // Servers of which only some are known are not judged; a single CoreDNS is enough.
    let mut watched = Watched::start(kubeconfig.clone(), &["10.96.0.10"]);
    let server =
        |index: usize, container| pod(&format!("coredns-{index}"), Some("node-a"), "default", container);
    create_running(&plane, "kube-system", server(0, "kubedns"), &["10.244.1.2"]).await;
    watched.until("its name is known", |it| it.present().pods.len() == 1).await;
    watched.take_reports();
    assert_eq!(watched.line("kube-system/kube-dns"), "nothing");
    create_running(&plane, "kube-system", server(1, "dnsmasq"), &["10.244.2.2"]).await;
    watched.until_line("kube-system/kube-dns", "are no CoreDNS").await;
    assert_eq!(watched.lines["kube-system/kube-dns"].observer, Observer::CorednsMetrics);

    // A cache on the node, or a server outside.
    let mut plain = Watched::start(kubeconfig, &["169.254.20.10"]);
    plain.until_line("kubernetes/services", "169.254.20.10 is no Service's ClusterIP").await;
    let inventory = plain.present();
    assert!(!inventory.service.is_virtual);
    assert_eq!(servers(&inventory), ["169.254.20.10:53"]);

    // Deleted: pods still ask its address, and nobody is behind it.
    plane.delete(&format!("{SERVICES}/kube-dns")).await;
    watched.until_line("kubernetes/services", "no Service has the address 10.96.0.10").await;
    let inventory = watched.present();
    assert_eq!((inventory.service.is_virtual, inventory.endpoints.len()), (true, 0));
}

#[tokio::test]
async fn what_rbac_refuses_is_named_and_the_rest_goes_on() {
    let plane = ControlPlane::start().await;
    create_dns(&plane, "kube-dns", ["10.96.0.10", "fd00:10:96::a"]).await;
    create_account(&plane, "dns", "nslookout").await;
    plane.create(NODES, named("node-a", json!({}))).await;
    let account = ("dns", "nslookout");
    let rules = json!([
        {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
    ]);
    grant(&plane, "narrow", account, rules).await;
    let token = plane.token("dns/nslookout", json!({})).await;
    let mut watched = Watched::start(plane.kubeconfig("nslookout", &token), &["10.96.0.10"]);

    watched.until("the servers are known", |it| it.present().endpoints.len() == 4).await;
    let user = "system:serviceaccount:dns:nslookout";
    watched.until_line("kubernetes/pods", &format!("RBAC: {user} may not list pods")).await;
    assert!(watched.line("kubernetes/pods").ends_with("those who suffer are told by address, not by name"));
    watched.until_line("kubernetes/nodes", "may not watch nodes").await;
    watched.until("its nodes were listed", |it| it.present().nodes.len() == 1).await;
    for place in ["kubernetes/services", "kubernetes/endpointslices"] {
        assert_eq!(watched.line(place), "looked, lost 0");
    }

    let rules = json!([{"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["list", "watch"]}]);
    grant(&plane, "wide", account, rules).await;
    for place in ["kubernetes/pods", "kubernetes/nodes"] {
        watched.until_line(place, "looked, lost 0").await;
    }

    let mut stranger = Watched::start(plane.kubeconfig("stranger", "no-token"), &["10.96.0.10"]);
    stranger.until_line("kubernetes/services", "does not accept the token (401)").await;
    stranger.take_reports();
    assert_eq!(stranger.told, None, "no endpoints would be a finding");
}
