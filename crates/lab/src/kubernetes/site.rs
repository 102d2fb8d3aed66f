//! What is a real cluster to the faults, which know nodes, pods and servers?
//!
//! A [`Site`] of the moment: pods come and go, so it is drawn anew before each fault. A server's process is its
//! container's, by the id that the machine sees; it can be stopped and let go on like one of the lab's own. Whatever
//! the API server decides (who serves, which pod is deleted) is asked of it here.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Error;
use crate::kubernetes::alertmanager::{self, PORT};
use crate::kubernetes::plan::{Cluster, DNS_V4, DNS_V6};
use crate::kubernetes::pods::Pod;
use crate::process::{Daemon, wait_until};
use crate::site::{self, Alertmanager, Server, Service, Site};

impl Cluster {
    /// The cluster as it is now. Pods that are not ready are none of it.
    pub fn site(&self) -> Result<Site, Error> {
        let all: Vec<_> = self.pods("")?.into_iter().filter(|pod| pod.ready).collect();
        let of = |namespace: &str, start: &str| -> Vec<&Pod> {
            let mine = |pod: &&Pod| pod.namespace == namespace && pod.name.starts_with(start);
            all.iter().filter(mine).collect()
        };
        let pods = of("default", "client-").into_iter().map(|pod| self.client(pod));
        let servers = of("kube-system", "coredns-").into_iter().map(|pod| self.server(pod));
        let alertmanager = match of(alertmanager::NAMESPACE, alertmanager::NAME).first() {
            Some(pod) => self.process(pod)?,
            None => self.unstarted(alertmanager::NAME, self.monitor.clone()),
        };
        Ok(Site {
            name: self.options.name.clone(),
            seed: 0,
            dir: self.dir.clone(),
            nodes: self.nodes.iter().map(|one| self.site_node(one)).collect(),
            pods: pods.collect::<Result<_, _>>()?,
            servers: servers.collect::<Result<_, _>>()?,
            transient: String::new(),
            upstream: self.upstream.clone(),
            service: Service {
                v4: address(DNS_V4)?,
                v6: address(DNS_V6)?,
                target_port: self.options.target_port,
            },
            inventory: PathBuf::new(),
            monitor: self.monitor.clone(),
            lan: self.lan.clone(),
            // In its own namespace, where no table of a node is on the way.
            alertmanager: Alertmanager {
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
                daemon: alertmanager,
            },
            cluster: Some(Box::new(self.clone())),
        })
    }

    /// Scales CoreDNS to nothing and waits till the last server has left the Service.
    pub(crate) fn no_server_serves(&self) -> Result<(), Error> {
        self.scale_dns(0)?;
        let begin = Instant::now();
        while self.serves()? {
            if begin.elapsed() > DEADLINE {
                return Err(late("a DNS Service without endpoints"));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Deletes a server while this node's kube-proxy is stopped and doesn't see it: its rules and entries stay. Waits
    /// till the server has ended, 10 s after it was told to leave.
    pub(crate) fn lose_server(&self, server: &Server, node: &str) -> Result<(), Error> {
        self.node(node)?.kube_proxy.stop()?;
        self.run(&["delete", "pod", &server.name, DNS_NAMESPACE, "--wait=false"])?;
        let ended = wait_until(DEADLINE, || server.daemon.id().is_none());
        ended.then_some(()).ok_or_else(|| late(&format!("the end of {}", server.name)))
    }

    /// Lets every kube-proxy go on, scales CoreDNS back, and waits till all rules lead to servers that are ready.
    pub(crate) fn all_servers_serve(&self) -> Result<(), Error> {
        self.nodes.iter().try_for_each(|node| node.kube_proxy.cont())?;
        self.scale_dns(2)?;
        self.run(&["rollout", "status", "deployment/coredns", DNS_NAMESPACE, "--timeout=60s"])?;
        self.wait_for_rules(DEADLINE)
    }

    /// How often containers of a namespace's pods were started again, by pod; those that never were are left out.
    pub fn restarts(&self, namespace: &str) -> Result<Vec<(String, u64)>, Error> {
        let pods = self.json(&["get", "pods", "--output=json", &format!("--namespace={namespace}")])?;
        let items = pods.get("items").and_then(Value::as_array).into_iter().flatten();
        let counted = items.map(|pod| {
            let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let containers = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
            let count = |one: &Value| one.get("restartCount").and_then(Value::as_u64);
            (name, containers.into_iter().flatten().filter_map(count).sum())
        });
        Ok(counted.filter(|(_, count)| *count > 0).collect())
    }

    fn scale_dns(&self, replicas: u8) -> Result<(), Error> {
        let replicas = format!("--replicas={replicas}");
        self.run(&["scale", "deployment/coredns", DNS_NAMESPACE, &replicas]).map(drop)
    }

    /// Whether any endpoint of the DNS Service still serves, one that is leaving included.
    fn serves(&self) -> Result<bool, Error> {
        let label = "--selector=kubernetes.io/service-name=kube-dns";
        let slices = self.json(&["get", "endpointslices", DNS_NAMESPACE, label, "--output=json"])?;
        let all =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut endpoints = all(&slices, "items").into_iter().flat_map(|slice| all(&slice, "endpoints"));
        Ok(endpoints.any(|one| one.pointer("/conditions/serving") == Some(&Value::Bool(true))))
    }

    fn site_node(&self, node: &crate::kubernetes::Node) -> site::Node {
        site::Node {
            name: node.name.clone(),
            netns: node.netns.clone(),
            v4: node.v4,
            v6: node.v6,
            pod_cidr_v4: node.pod_cidr_v4.clone(),
            pod_cidr_v6: node.pod_cidr_v6.clone(),
        }
    }

    fn client(&self, pod: &Pod) -> Result<site::Pod, Error> {
        let (v4, v6) = addresses(pod);
        Ok(site::Pod {
            name: pod.name.clone(),
            node: pod.node.clone(),
            netns: self.pod_netns(pod)?,
            veth: String::new(),
            v4,
            v6,
        })
    }

    fn server(&self, pod: &Pod) -> Result<Server, Error> {
        let (v4, v6) = addresses(pod);
        let daemon = self.process(pod)?;
        Ok(Server {
            name: pod.name.clone(),
            node: pod.node.clone(),
            netns: daemon.netns.clone(),
            veth: String::new(),
            v4,
            v6,
            port: self.options.target_port,
            corefile: PathBuf::new(),
            pristine: String::new(),
            daemon,
        })
    }

    /// The one process of a pod, to be stopped and let go on. The kubelet starts and ends it, not the lab.
    fn process(&self, pod: &Pod) -> Result<Daemon, Error> {
        let daemon = self.unstarted(&pod.name, self.pod_netns(pod)?);
        let process = self.processes(pod)?.first().copied();
        let id = process.ok_or_else(|| Error::NotRunning { name: pod.name.clone(), log: String::new() })?;
        let text = format!("{} {}\n", id.pid, id.start);
        fs::write(&daemon.pid_file, text).map_err(Error::file("write", &daemon.pid_file))?;
        Ok(daemon)
    }

    fn unstarted(&self, name: &str, netns: PathBuf) -> Daemon {
        Daemon {
            name: name.to_owned(),
            netns,
            program: PathBuf::new(),
            args: Vec::new(),
            log: self.dir.join(format!("{name}.log")),
            pid_file: self.dir.join(format!("pod-{name}.pid")),
        }
    }
}

/// Of a family that the cluster has not: the unspecified one.
fn addresses(pod: &Pod) -> (Ipv4Addr, Ipv6Addr) {
    let (mut first, mut second) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    for address in &pod.addresses {
        match address {
            IpAddr::V4(v4) => first = *v4,
            IpAddr::V6(v6) => second = *v6,
        }
    }
    (first, second)
}

fn address(text: &str) -> Result<SocketAddr, Error> {
    let address: IpAddr = text.parse().map_err(|error| {
        Error::system("read the address of the DNS Service")(std::io::Error::other(error))
    })?;
    Ok(SocketAddr::new(address, 53))
}

fn late(what: &str) -> Error {
    Error::NotReady {
        what: what.to_owned(),
        seconds: DEADLINE.as_secs(),
        last: "not yet".to_owned(),
        log: String::new(),
    }
}

const DNS_NAMESPACE: &str = "--namespace=kube-system";

/// CoreDNS takes 10 s to leave.
const DEADLINE: Duration = Duration::from_secs(60);
