//! What is created in every cluster of the lab: nodes, CoreDNS as kubeadm installs it, client pods.
//!
//! Nodes are created before their kubelets, with the networks that the lab has routes for.

use serde_json::{Value, json};

use crate::kubernetes::images;
use crate::kubernetes::plan::{Cluster, Node, Options};

/// The nodes, kube-proxy's rights, and CoreDNS with all it needs.
pub fn system(cluster: &Cluster) -> Value {
    let options = &cluster.options;
    let mut items: Vec<_> = cluster.nodes.iter().map(|one| node(one, options)).collect();
    items.extend([
        binding("lab:kube-proxy", "system:node-proxier", &json!({ "kind": "User", "name": "system:kube-proxy", "apiGroup": RBAC })),
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": "coredns", "namespace": "kube-system" },
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ],
        }),
        binding("system:coredns", "system:coredns", &json!({ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" })),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "coredns", "namespace": "kube-system" },
            "data": { "Corefile": corefile(options.target_port) },
        }),
        dns_service(options),
        deployment(options),
    ]);
    list(items)
}

/// The client pods: "client-a1", "client-a2", "client-b1" and so on, in the namespace "default".
pub fn clients(cluster: &Cluster) -> Value {
    list(
        cluster
            .nodes
            .iter()
            .flat_map(|node| (1..=cluster.options.clients).map(|n| client(node, n)))
            .collect(),
    )
}

/// CoreDNS's configuration: kubeadm's, but that nothing is cached, so that a fault of the upstream shows in each
/// lookup. It leaves slowly (lameduck), so that a rolling restart loses no lookup.
pub fn corefile(port: u16) -> String {
    format!(
        ".:{port} {{
    errors
    health {{
        lameduck 10s
    }}
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus :9153
    forward . /etc/resolv.conf {{
        max_concurrent 1000
        health_check 500ms
    }}
    reload
    loadbalance
}}
"
    )
}

fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn node(node: &Node, options: &Options) -> Value {
    let cidrs = node.pod_cidrs(options);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": node.name.replace("node", "zone"),
            },
        },
        "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
    })
}

fn binding(name: &str, role: &str, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": name },
        "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
        "subjects": [subject],
    })
}

fn dns_service(options: &Options) -> Value {
    let addresses = options.dns_addresses();
    let (policy, families) = if options.dual_stack {
        ("RequireDualStack", json!(["IPv4", "IPv6"]))
    } else {
        ("SingleStack", json!(["IPv4"]))
    };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" },
            "annotations": { "prometheus.io/port": "9153", "prometheus.io/scrape": "true" },
        },
        "spec": {
            "selector": { "k8s-app": "kube-dns" },
            "clusterIP": addresses.first(), "clusterIPs": addresses,
            "ipFamilyPolicy": policy, "ipFamilies": families,
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": options.target_port },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": options.target_port },
                { "name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153 },
            ],
        },
    })
}

fn deployment(options: &Options) -> Value {
    let port = options.target_port;
    let labels = json!({ "k8s-app": "kube-dns" });
    // Asked often, so that the cluster is up soon. One that hangs stays in the Service for half a minute, as where the
    // kubelet asks every 10 s and thrice.
    let ready =
        json!({ "httpGet": { "path": "/ready", "port": 8181 }, "periodSeconds": 1, "failureThreshold": 30 });
    let alive = json!({
        "httpGet": { "path": "/health", "port": 8080 },
        "initialDelaySeconds": 60, "timeoutSeconds": 5, "failureThreshold": 5,
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "coredns", "namespace": "kube-system", "labels": labels },
        "spec": {
            "replicas": 2,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "priorityClassName": "system-cluster-critical",
                    "serviceAccountName": "coredns",
                    "dnsPolicy": "Default",
                    "tolerations": [{ "key": "CriticalAddonsOnly", "operator": "Exists" }],
                    "nodeSelector": { "kubernetes.io/os": "linux" },
                    "topologySpreadConstraints": [{
                        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": labels },
                        // Of one generation: a rolling restart, too, ends with one on each node.
                        "matchLabelKeys": ["pod-template-hash"],
                    }],
                    "containers": [{
                        "name": "coredns",
                        "image": images::coredns(),
                        "imagePullPolicy": "Never",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "resources": { "requests": { "cpu": "100m", "memory": "70Mi" }, "limits": { "memory": "170Mi" } },
                        "ports": [
                            { "name": "dns", "containerPort": port, "protocol": "UDP" },
                            { "name": "dns-tcp", "containerPort": port, "protocol": "TCP" },
                            { "name": "metrics", "containerPort": 9153, "protocol": "TCP" },
                        ],
                        "readinessProbe": ready,
                        "livenessProbe": alive,
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": { "add": ["NET_BIND_SERVICE"], "drop": ["ALL"] },
                        },
                        "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns", "readOnly": true }],
                    }],
                    "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
                },
            },
        },
    })
}

fn client(node: &Node, number: u8) -> Value {
    let letter = node.name.rsplit('-').next().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("client-{letter}{number}"), "namespace": "default", "labels": { "k8s-app": "client" } },
        "spec": {
            "nodeName": node.name,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 2,
            "containers": [{ "name": "client", "image": images::CLIENT, "imagePullPolicy": "Never" }],
        },
    })
}

const RBAC: &str = "rbac.authorization.k8s.io";
