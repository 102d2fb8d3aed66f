//! What would `kubectl get endpointslices,services,pods,nodes -A -o json` print about this site?
//!
//! The miniature has no API server. This file takes its place: nslookout reads it, and it is replaced by rename
//! whenever endpoints change.

use serde_json::{Value, json};

use crate::site::{Node, Pod, Site, replace};
use crate::{Endpoints, Error};

/// Writes the inventory with these endpoints of the Service.
pub fn write(site: &Site, endpoints: &Endpoints) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(&list(site, endpoints))
        .map_err(|source| Error::Json { path: site.inventory.clone(), source })?;
    replace(&site.inventory, &text)
}

fn list(site: &Site, endpoints: &Endpoints) -> Value {
    let mut items = vec![slice(site, endpoints, "IPv4"), slice(site, endpoints, "IPv6"), service(site)];
    items.extend(site.servers.iter().map(|server| {
        let node = site.node(&server.node).ok();
        let addresses = [server.v4.to_string(), server.v6.to_string()];
        pod("kube-system", &server.name, "kube-dns", addresses, &server.node, node)
    }));
    items.extend(site.pods.iter().map(|one: &Pod| {
        let node = site.node(&one.node).ok();
        pod("default", &one.name, "client", [one.v4.to_string(), one.v6.to_string()], &one.node, node)
    }));
    items.extend(site.nodes.iter().map(node));
    json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items })
}

fn slice(site: &Site, endpoints: &Endpoints, family: &str) -> Value {
    let endpoints: Vec<_> = site
        .servers
        .iter()
        .filter(|server| endpoints.lists(server))
        .map(|server| {
            let ready = endpoints.serves(server);
            let address = if family == "IPv4" { server.v4.to_string() } else { server.v6.to_string() };
            json!({
                "addresses": [address],
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "nodeName": server.node,
                "targetRef": { "kind": "Pod", "namespace": "kube-system", "name": server.name, "uid": uid(&server.name) },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("kube-dns-{}", family.to_lowercase()),
            "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [
            { "name": "dns", "port": site.service.target_port, "protocol": "UDP" },
            { "name": "dns-tcp", "port": site.service.target_port, "protocol": "TCP" },
            { "name": "metrics", "port": 9153, "protocol": "TCP" },
        ],
    })
}

fn service(site: &Site) -> Value {
    let target = site.service.target_port;
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": site.service.v4.ip(),
            "clusterIPs": [site.service.v4.ip(), site.service.v6.ip()],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "k8s-app": "kube-dns" },
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": target },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": target },
                { "name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153 },
            ],
        },
    })
}

fn pod(namespace: &str, name: &str, app: &str, ips: [String; 2], node: &str, on: Option<&Node>) -> Value {
    let [v4, v6] = ips;
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "uid": uid(name), "labels": { "k8s-app": app } },
        "spec": { "nodeName": node, "hostNetwork": false, "dnsPolicy": if app == "kube-dns" { "Default" } else { "ClusterFirst" } },
        "status": {
            "phase": "Running",
            "hostIP": on.map(|node| node.v4),
            "podIP": v4,
            "podIPs": [{ "ip": v4 }, { "ip": v6 }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn node(node: &Node) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name, "labels": { "kubernetes.io/hostname": node.name } },
        "spec": { "podCIDR": node.pod_cidr_v4, "podCIDRs": [node.pod_cidr_v4, node.pod_cidr_v6] },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": node.v4 },
                { "type": "InternalIP", "address": node.v6 },
                { "type": "Hostname", "address": node.name },
            ],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// In the form of a UID, and the same in each run.
fn uid(name: &str) -> String {
    // FNV-1a, 64 bits.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("00000000-0000-4000-{:04x}-{:012x}", hash >> 48, hash & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::miniature::plan;

    #[test]
    fn a_server_that_is_no_endpoint_is_still_a_pod() {
        let site = plan::draw("x", 1, Some(5353), PathBuf::new());
        let [_, gone, unready] = [0, 1, 2].map(|index: usize| [site.servers[index].name.clone()].into());
        let list = list(&site, &Endpoints { gone, unready, ..Endpoints::default() });
        let items = list["items"].as_array().unwrap();
        let of = |kind: &str| items.iter().filter(|item| item["kind"] == kind).collect::<Vec<_>>();
        assert_eq!(of("EndpointSlice").len(), 2);
        let listed = of("EndpointSlice")[0]["endpoints"].as_array().unwrap();
        let ready: Vec<_> = listed.iter().map(|one| one["conditions"]["ready"].as_bool()).collect();
        assert_eq!(ready, [Some(true), Some(false)]);
        assert_eq!(of("EndpointSlice")[1]["ports"][0]["port"], 5353);
        assert_eq!(of("Pod").len(), 7);
        assert_eq!(of("Node").len(), 2);
    }
}
