//! A laptop outside of the cluster: it has a kubeconfig, name servers of its own, and nslookout.
//!
//! It is the control plane's network namespace: there the API server is reached as from a user's office, and cluster
//! DNS is not.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lab::command;
use lab::kubernetes::Cluster;
use lab::programs;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A name that is in the API server's certificate, and in no DNS but the laptop's.
pub const HOST: &str = "kubernetes.default.svc.cluster.local";

/// The laptop; its name server ends with it.
#[derive(Debug)]
pub struct Laptop<'a> {
    cluster: &'a Cluster,
    folder: TempDir,
    name_server: Child,
    authority: Value,
}

impl<'a> Laptop<'a> {
    /// With a real CoreDNS as its name server, which knows the API server's host.
    #[must_use]
    pub fn of(cluster: &'a Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let admin: Value = serde_json::from_slice(&fs::read(&cluster.kubeconfig).unwrap()).unwrap();
        let cluster_of_admin = admin.pointer("/clusters/0/cluster").cloned().unwrap();
        let authority = cluster_of_admin.get("certificate-authority").cloned().unwrap();
        let api = cluster.api;
        let corefile = format!(".:53 {{\n bind 127.0.0.53\n hosts {{\n  {api} {HOST}\n }}\n}}\n");
        fs::write(folder.path().join("Corefile"), corefile).unwrap();
        fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
        let log = File::create(folder.path().join("coredns.log")).unwrap();
        let mut coredns = command::inside(&cluster.control, programs::coredns().unwrap());
        coredns.arg("-conf").arg(folder.path().join("Corefile"));
        let name_server = coredns.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).spawn().unwrap();
        Self { cluster, folder, name_server, authority }
    }

    /// A kubeconfig whose user shows what a credential plugin prints: this token.
    #[must_use]
    pub fn kubeconfig(&self, name: &str, server: &str, token: &str) -> PathBuf {
        let plugin = self.folder.path().join(format!("{name}.sh"));
        let credential = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": { "token": token },
        });
        fs::write(&plugin, format!("#!/bin/sh\necho '{credential}'\n")).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": plugin, "interactiveMode": "Never",
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority": self.authority } }],
            "users": [{ "name": "u", "user": { "exec": exec } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "c",
        });
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A token of a service account in "default", which is made with this role of nslookout's namespace.
    #[must_use]
    pub fn token(&self, account: &str, role: &str) -> String {
        let cluster = self.cluster;
        cluster.run(&["create", "serviceaccount", account]).unwrap();
        let (role, of) = (format!("--role={role}"), format!("--serviceaccount=default:{account}"));
        cluster.run(&["create", "rolebinding", account, "--namespace=nslookout", &role, &of]).unwrap();
        cluster.run(&["create", "token", account]).unwrap().trim().to_owned()
    }

    /// `nslookout status` there, with these arguments.
    #[must_use]
    pub fn status(&self, kubeconfig: Option<&Path>, words: &[&str]) -> Output {
        let mut command = command::inside(&self.cluster.control, "unshare");
        let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        command.args(["--mount", "--", "sh", "-c", script]).arg(self.folder.path().join("resolv.conf"));
        command.arg(crate::nslookout()).arg("status").args(words);
        self.alone(&mut command);
        if let Some(path) = kubeconfig {
            command.env("KUBECONFIG", path);
        }
        command::output(&mut command, None).unwrap()
    }

    /// Nothing of the machine's own user.
    fn alone(&self, command: &mut Command) {
        command.env("HOME", self.folder.path()).env_remove("KUBECONFIG");
        for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
    }
}

impl Drop for Laptop<'_> {
    fn drop(&mut self) {
        drop(self.name_server.kill());
        drop(self.name_server.wait());
    }
}
