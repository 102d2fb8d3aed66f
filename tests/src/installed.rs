//! nslookout as Helm installs it in a real cluster: what tests there share.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::command;
pub use lab::kubernetes::product::NAMESPACE;
use lab::kubernetes::{Options, Raised, progress};
use lab::programs;
use lab::trial::{Incident, OBSERVERS, Status};

/// Its nodes, as a cluster of two has them.
pub const NODES: [&str; 2] = ["node-a", "node-b"];

/// A real cluster that has nslookout's image; it is taken down when this is dropped.
#[derive(Debug)]
pub struct Installed {
    /// The cluster itself.
    pub cluster: Raised,
    helm: PathBuf,
}

impl Installed {
    /// Raises a cluster, loads the image of the binary that the tests use, and makes the namespace. Nothing is
    /// installed yet.
    #[must_use]
    pub fn raise(options: &Options) -> Self {
        let helm = programs::cluster::all().unwrap().helm.join("helm");
        let cluster = Raised::up(options, &mut progress()).unwrap();
        cluster.load_nslookout(&crate::nslookout(), env!("CARGO_PKG_VERSION")).unwrap();
        cluster.run(&["create", "namespace", "nslookout"]).unwrap();
        Self { cluster, helm }
    }

    /// Helm as the administrator, to be given arguments.
    #[must_use]
    pub fn helm(&self) -> Command {
        self.cluster.administrator(&self.helm)
    }

    /// The same image under another tag, as a newer release would be.
    pub fn load_image_as(&self, tag: &str) {
        self.cluster.load_nslookout(&crate::nslookout(), tag).unwrap();
    }

    /// Waits until nothing of nslookout is in the cluster but its namespace.
    pub fn nothing_left(&self) {
        let kinds = "pods,daemonsets,deployments,replicasets,services,secrets,configmaps,roles,rolebindings,\
                     serviceaccounts,resourcequotas,networkpolicies,persistentvolumeclaims";
        let begin = Instant::now();
        loop {
            let left = self.cluster.run(&["get", kinds, NAMESPACE, "--output=name"]).unwrap();
            let global =
                self.cluster.run(&["get", "clusterroles,clusterrolebindings", "--output=name"]).unwrap();
            let mut ours = left
                .lines()
                .filter(|name| !name.ends_with("/default") && !name.ends_with("/kube-root-ca.crt"));
            let first = ours.next().or_else(|| global.lines().find(|name| name.contains("nslookout")));
            let Some(first) = first else { break };
            assert!(begin.elapsed() < Duration::from_secs(60), "{first} is left");
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// `helm install`, to be run: the chart as a user installs it, but for where the image is, and that incidents
    /// close soon.
    #[must_use]
    pub fn helm_install(&self, more: &[&str]) -> Command {
        let mut helm = self.cluster.helm_install(&self.helm, &chart());
        helm.args(more);
        helm
    }

    /// Installs it and waits until it is healthy and sees everything.
    pub fn install(&self, more: &[&str]) {
        let begin = Instant::now();
        command::run(&mut self.helm_install(more), None).unwrap();
        let installed = begin.elapsed().as_secs_f64();
        self.wait_for("it is healthy and sees everything", |status| {
            status.state == "healthy" && sees_everything(status)
        });
        println!(
            "installed after {installed:.1} s, first verdict after {:.1} s",
            begin.elapsed().as_secs_f64()
        );
    }

    /// What `nslookout status` says in the correlator's pod; nothing while there is none.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(["exec", NAMESPACE, "deploy/nslookout-correlator", "--"]);
        kubectl.args(["/nslookout", "status", "--output=json"]);
        // It ends with 1 where something is wrong.
        serde_json::from_slice(&command::output(&mut kubectl, None).unwrap().stdout).ok()
    }

    /// Waits a minute at most for a status like this.
    pub fn wait_for(&self, what: &str, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        let begin = Instant::now();
        let mut last = None;
        while begin.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.status() {
                if wanted(&status) {
                    return status;
                }
                last = Some(status);
            }
            thread::sleep(Duration::from_millis(300));
        }
        panic!("not within 60 s: {what}\n{last:#?}\n{}", self.log())
    }

    /// Waits for the one incident, which is of this cause.
    pub fn named(&self, cause: &str) -> Incident {
        let begin = Instant::now();
        let is_named = |status: &Status| status.incidents.iter().any(|one| one.cause == cause);
        self.wait_for(cause, is_named);
        println!("{cause} named after {:.1} s", begin.elapsed().as_secs_f64());
        // What else was open before the proof came is over a moment later.
        let alone = |status: &Status| status.incidents.len() == 1 && is_named(status);
        let status = self.wait_for(&format!("{cause} and nothing else"), alone);
        status.incidents.into_iter().next().unwrap()
    }

    /// Waits until nothing is wrong any more.
    pub fn calm(&self) {
        self.wait_for("all is calm", |status| status.incidents.is_empty() && status.state == "healthy");
    }

    /// Scales CoreDNS.
    pub fn scale_dns(&self, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        self.cluster.run(&["scale", "deployment/coredns", "--namespace=kube-system", &replicas]).unwrap();
    }

    /// The correlator's pod.
    #[must_use]
    pub fn correlator(&self) -> String {
        let pods = self.cluster.pods("app.kubernetes.io/component=correlator").unwrap();
        pods.into_iter().find(|pod| pod.phase == "Running").map(|pod| pod.name).unwrap()
    }

    /// The end of the correlator's log.
    #[must_use]
    pub fn log(&self) -> String {
        let words = ["logs", NAMESPACE, "deploy/nslookout-correlator", "--tail=20"];
        self.cluster.run(&words).unwrap_or_default()
    }
}

/// The chart's folder.
#[must_use]
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/nslookout")
}

/// Whether both agents of both nodes see what they should.
#[must_use]
pub fn agents_report(status: &Status) -> bool {
    let agents = ["prober", "conntrack-counters", "conntrack-table", "drops"];
    agents.iter().all(|observer| NODES.iter().all(|node| looks(status, observer, node)))
}

/// Whether nobody is blind.
#[must_use]
pub fn sees_everything(status: &Status) -> bool {
    let looking = status.looking();
    OBSERVERS.iter().all(|observer| looking.contains(observer)) && agents_report(status)
}

/// Sends a signal to a process, by kill's name of it.
pub fn signal(name: &str, pid: i32) {
    command::run(Command::new("kill").args(["-s", name, &pid.to_string()]), None).unwrap();
}

fn looks(status: &Status, observer: &str, place: &str) -> bool {
    let is = |line: &serde_json::Value, key: &str, value: &str| line.get(key).is_some_and(|one| one == value);
    let mut lines = status.coverage.iter();
    lines
        .any(|line| is(line, "observer", observer) && is(line, "place", place) && is(line, "state", "looked"))
}
