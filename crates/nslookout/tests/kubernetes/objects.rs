//! What a small cluster holds: its DNS Service, servers, clients and nodes.

use serde_json::{Value, json};

use crate::control_plane::ControlPlane;

/// In kube-system.
pub const SERVICES: &str = "/api/v1/namespaces/kube-system/services";
/// In kube-system.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
/// The nodes.
pub const NODES: &str = "/api/v1/nodes";

/// kube-dns of both families, with two servers in a slice of each.
pub async fn create_dns(plane: &ControlPlane, name: &str, addresses: [&str; 2]) {
    let service = json!({
        "metadata": {"name": name},
        "spec": {
            "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 5353},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            ],
        },
    });
    plane.create(SERVICES, service).await;
    plane.create(SLICES, slice(name, "IPv4", &["10.244.1.2", "10.244.2.2"])).await;
    plane.create(SLICES, slice(name, "IPv6", &["fd01::1:2", "fd01::2:2"])).await;
}

/// Of one family.
pub fn slice(service: &str, family: &str, addresses: &[&str]) -> Value {
    json!({
        "metadata": {
            "name": format!("{service}-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": endpoints(addresses),
        "ports": [
            {"name": "dns-tcp", "port": 5353, "protocol": "TCP"},
            {"name": "dns", "port": 5353, "protocol": "UDP"},
        ],
    })
}

/// The n-th is the pod coredns-N.
pub fn endpoints(addresses: &[&str]) -> Value {
    let endpoint = |(index, address): (usize, &&str)| {
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true},
            "nodeName": "node-a",
            "targetRef": {"kind": "Pod", "namespace": "kube-system", "name": format!("coredns-{index}")},
        })
    };
    addresses.iter().enumerate().map(endpoint).collect()
}

/// A namespace or a node, by its name and labels.
pub fn named(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

/// A pod on a node (none: not scheduled yet), with its service account made beforehand.
pub fn pod(name: &str, node: Option<&str>, account: &str, container: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "containers": [{"name": container, "image": format!("registry.example.com/{container}:1")}],
        },
    })
}

/// Creates a running pod with addresses, as a kubelet would report them.
pub async fn create_running(plane: &ControlPlane, namespace: &str, pod: Value, ips: &[&str]) {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
    plane.create(&pods, pod).await;
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let status = json!({"status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips}});
    plane.patch(&format!("{pods}/{name}/status"), status).await;
}

/// Creates a namespace with a service account.
pub async fn create_account(plane: &ControlPlane, namespace: &str, account: &str) {
    let path = format!("/api/v1/namespaces/{namespace}");
    if crate::control_plane::get(&plane.admin, &path).await.is_err() {
        plane.create("/api/v1/namespaces", named(namespace, json!({}))).await;
    }
    plane.create(&format!("{path}/serviceaccounts"), named(account, json!({}))).await;
}

/// Lets a service account do this in the whole cluster.
pub async fn grant(plane: &ControlPlane, role: &str, (namespace, account): (&str, &str), rules: Value) {
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let mut object = named(role, json!({}));
    object["rules"] = rules;
    plane.create(&format!("{group}/clusterroles"), object).await;
    let mut binding = named(role, json!({}));
    binding["roleRef"] =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
    binding["subjects"] = json!([{"kind": "ServiceAccount", "namespace": namespace, "name": account}]);
    plane.create(&format!("{group}/clusterrolebindings"), binding).await;
}
