//! Applications that look names up all the time, by the real getaddrinfo of glibc and of musl, in client pods.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::Duration;

use lab::command;
use lab::kubernetes::Cluster;
use lab::programs;
use tempfile::TempDir;

/// They end with this value.
#[derive(Debug)]
pub struct Callers {
    folder: TempDir,
    processes: Vec<Child>,
}

/// What came of their lookups.
#[derive(Debug, Default)]
pub struct Tally {
    /// Lookups that ended.
    pub made: usize,
    /// Lines of those that ended without an address, or waited as long as only a lost packet makes them wait.
    pub lost: Vec<String>,
}

impl Callers {
    /// One of each library in a pod of each node, with the resolv.conf that kubelet gave the pod.
    #[must_use]
    pub fn start(cluster: &Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let programs = [
            ("glibc", programs::getaddrinfo_glibc().unwrap()),
            ("musl", programs::getaddrinfo_musl().unwrap()),
        ];
        let clients = cluster.pods("k8s-app=client").unwrap();
        // As they are pushed their Drop takes over.
        let mut callers = Self { folder, processes: Vec::new() };
        for node in &cluster.nodes {
            let pod = clients.iter().find(|pod| pod.node == node.name).unwrap();
            let resolv_conf = callers.folder.path().join(format!("{}.conf", pod.name));
            fs::write(&resolv_conf, cluster.exec(&pod.name, &["cat", "/etc/resolv.conf"]).unwrap()).unwrap();
            for (libc, program) in &programs {
                let lines = callers.folder.path().join(format!("{}-{libc}.lines", pod.name));
                let mut command = command::inside(&cluster.pod_netns(pod).unwrap(), "unshare");
                let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
                command.args(["--mount", "--", "sh", "-c", script]).arg(&resolv_conf).arg(program);
                command.args(["kubernetes.default", "--rate", "20", "--threads", "16"]);
                let file = File::create(&lines).unwrap();
                let process = command.stdin(Stdio::null()).stdout(file).spawn().unwrap();
                callers.processes.push(process);
            }
        }
        callers
    }

    /// What came of all that ended so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "lines") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            // A half-written last line is none.
            for line in text.lines().filter(|line| line.split(' ').count() == 5) {
                let mut fields = line.split(' ').skip(1);
                let took = fields.next().and_then(|text| text.parse().ok()).map(Duration::from_nanos);
                tally.made += 1;
                if fields.next() != Some("OK") || took.is_none_or(|took| took >= RESENT) {
                    tally.lost.push(format!("{}: {line}", path.display()));
                }
            }
        }
        tally
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            drop(process.kill());
        }
        for process in &mut self.processes {
            drop(process.wait());
        }
    }
}

/// musl sends again after 2.5 s, glibc after 5 s: who waited less lost no packet.
const RESENT: Duration = Duration::from_secs(2);
