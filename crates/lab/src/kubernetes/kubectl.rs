//! What does the cluster itself say: is it ready, what is in it, and what does a pod see?
//!
//! All of it by the real kubectl, in the control plane's namespace: the same way as a person would ask.

use std::net::{AddrParseError, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::dns::{self, Kind};
use crate::kubernetes::plan::Cluster;
use crate::miniature::coredns::CLUSTER_NAME;
use crate::{Error, command};

/// How many are there, for a line at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Nodes that are Ready.
    pub nodes: usize,
    /// Pods that are Running.
    pub pods: usize,
}

impl Cluster {
    /// kubectl as the administrator, to be given arguments.
    pub fn kubectl(&self) -> Command {
        self.administrator(&self.kubectl)
    }

    /// A program (helm, nslookout) that finds the cluster by KUBECONFIG, as its administrator.
    pub fn administrator(&self, program: &Path) -> Command {
        let mut command = command::inside(&self.control, program);
        // What kubectl remembers of an API server, and what its user prefers, is not this cluster's.
        command.env("KUBECONFIG", &self.kubeconfig);
        command.env("KUBECACHEDIR", self.dir.join("kubectl")).env("KUBERC", "off");
        for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
        command
    }

    /// Runs kubectl and gives what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, Error> {
        command::run(self.kubectl().args(arguments), None)
    }

    /// Runs kubectl with `--output=json` among its arguments.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, Error> {
        let text = self.run(arguments)?;
        serde_json::from_str(&text)
            .map_err(|source| Error::Json { path: format!("kubectl {}", arguments.join(" ")).into(), source })
    }

    /// Creates what the value describes.
    pub fn create(&self, value: &Value) -> Result<(), Error> {
        let mut kubectl = self.kubectl();
        kubectl.args(["create", "--validate=strict", "--filename=-"]);
        command::run(&mut kubectl, Some(&value.to_string())).map(drop)
    }

    /// Runs a program in a pod of the namespace "default".
    pub fn exec(&self, pod: &str, words: &[&str]) -> Result<String, Error> {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(words);
        self.run(&arguments)
    }

    /// Counts what is well.
    pub fn figures(&self) -> Result<Figures, Error> {
        let nodes = self.json(&["get", "nodes", "--output=json"])?;
        let is = |one: &Value, key: &str, word: &str| one.get(key).is_some_and(|value| value == word);
        let ready = |node: &&Value| {
            let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
            conditions.into_iter().flatten().any(|one| is(one, "type", "Ready") && is(one, "status", "True"))
        };
        let nodes = nodes.get("items").and_then(Value::as_array).into_iter().flatten().filter(ready).count();
        let pods = self.pods("")?.iter().filter(|pod| pod.phase == "Running").count();
        Ok(Figures { nodes, pods })
    }

    pub(super) fn wait_for_api(&self, deadline: Duration) -> Result<(), Error> {
        self.ask("the API server", deadline, &["get", "--raw=/readyz"])
    }

    /// Without it no pod is admitted.
    pub(super) fn wait_for_default_account(&self, deadline: Duration) -> Result<(), Error> {
        self.ask("the service account default", deadline, &["get", "serviceaccount", "default"])
    }

    pub(super) fn wait_for_nodes(&self, deadline: Duration) -> Result<(), Error> {
        self.watch("the nodes", deadline, &["wait", "--for=condition=Ready", "nodes", "--all"])
    }

    pub(super) fn wait_for_pods(&self, deadline: Duration) -> Result<(), Error> {
        let begin = Instant::now();
        self.watch(
            "CoreDNS",
            deadline,
            &["rollout", "status", "deployment/coredns", "--namespace=kube-system"],
        )?;
        let rest = deadline.saturating_sub(begin.elapsed());
        self.watch(
            "the client pods",
            rest,
            &["wait", "--for=condition=Ready", "pods", "--all", "--namespace=default"],
        )
    }

    /// From one client pod of each node.
    pub(super) fn wait_for_answers(&self, deadline: Duration) -> Result<(), Error> {
        let clients = self.pods("k8s-app=client")?;
        for node in &self.nodes {
            let Some(client) = clients.iter().find(|client| client.node == node.name) else { continue };
            let netns = self.pod_netns(client)?;
            for address in self.options.dns_addresses() {
                let server = SocketAddr::new(address.parse().map_err(not_an_address)?, 53);
                let what = format!("{CLUSTER_NAME} asked by {} of {server}", client.name);
                dns::wait_for(&what, deadline, None, || {
                    dns::ask_udp(&netns, server, CLUSTER_NAME, Kind::A, Duration::from_millis(300))
                        .map_err(|error| error.to_string())
                        .and_then(|it| if it.records > 0 { Ok(()) } else { Err(format!("{it:?}")) })
                })?;
            }
        }
        Ok(())
    }

    /// Asks again and again until kubectl ends well.
    fn ask(&self, what: &str, deadline: Duration, arguments: &[&str]) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let Err(error) = self.run(&[arguments, &["--request-timeout=2s"]].concat()) else {
                return Ok(());
            };
            self.pause(what, begin, deadline, error.to_string())?;
        }
    }

    /// kubectl itself watches until it is so. Meanwhile the lab looks whether a part of the cluster has died.
    fn watch(&self, what: &str, deadline: Duration, arguments: &[&str]) -> Result<(), Error> {
        let mut kubectl = self.kubectl();
        kubectl.args(arguments).arg(format!("--timeout={}s", deadline.as_secs().max(1)));
        let mut child = kubectl
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Spawn { program: self.kubectl.display().to_string(), source })?;
        while child.try_wait().map_err(Error::system("wait for kubectl"))?.is_none() {
            if let Err(error) = self.all_alive() {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error);
            }
            thread::sleep(Duration::from_millis(100));
        }
        let output = child.wait_with_output().map_err(Error::system("read what kubectl says"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(self.not_ready(what, deadline, command::failure(&kubectl, &output).to_string()))
    }

    /// A moment before the next question, which costs a process and a TLS handshake; an error once it is too late or
    /// a part of the cluster has died.
    fn pause(&self, what: &str, begin: Instant, deadline: Duration, last: String) -> Result<(), Error> {
        self.all_alive()?;
        if begin.elapsed() > deadline {
            return Err(self.not_ready(what, deadline, last));
        }
        thread::sleep(Duration::from_millis(150));
        Ok(())
    }

    /// An error with the log of a process that was started and has died.
    fn all_alive(&self) -> Result<(), Error> {
        let mut started = self.daemons().into_iter().filter(|daemon| daemon.pid_file.exists());
        started.try_for_each(|daemon| daemon.running().map(drop))
    }

    fn not_ready(&self, what: &str, deadline: Duration, last: String) -> Error {
        let seen =
            self.run(&["get", "nodes,pods", "--all-namespaces", "--output=wide", "--request-timeout=5s"]);
        let events =
            self.run(&["get", "events", "--all-namespaces", "--request-timeout=5s"]).unwrap_or_default();
        let mut log = seen.unwrap_or_default() + command::tail(&events, 2_000);
        for node in &self.nodes {
            log += &format!("\n{}: {}", node.kubelet.name, node.kubelet.log_tail());
        }
        Error::NotReady { what: what.to_owned(), seconds: deadline.as_secs(), last, log }
    }
}

fn not_an_address(error: AddrParseError) -> Error {
    Error::system("read the address of the DNS Service")(std::io::Error::other(error))
}
