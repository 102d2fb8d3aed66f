//! What could somebody do who has got into an agent's pod? As little as the chart says, each thing tried in a real cluster.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is how a test fails"
)]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use e2e::installed::{Installed, NAMESPACE};
use lab::command;
use lab::kubernetes::Options;
use lab::kubernetes::images::CLIENT;
use serde_json::{Value, json};

/// CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
const NODE_AGENT: u64 = 1 << 12 | 1 << 38 | 1 << 39;

#[test]
fn who_is_in_an_agents_pod_can_do_nothing_but_report_of_its_own_node() {
    let installed = Installed::raise(&Options::new(format!("confined-{}", std::process::id())));
    let cluster = &installed.cluster;
    installed.install(&[]);

    for (part, capabilities, user) in
        [("prober", 0, "65532"), ("node", NODE_AGENT, "0"), ("correlator", 0, "65532")]
    {
        let pods = cluster.pods(&format!("app.kubernetes.io/component={part}")).unwrap();
        let processes: Vec<_> = pods.iter().flat_map(|pod| cluster.processes(pod).unwrap()).collect();
        // kubelet's probes come and go beside it.
        let own = processes.iter().filter(|process| {
            let words = fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            words.starts_with("/nslookout") && words.contains("--config")
        });
        let own: Vec<_> = own.collect();
        assert_eq!(own.len(), pods.len(), "{part}: {processes:?}");
        for process in own {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.split_whitespace().next().unwrap_or_default().to_owned()
            };
            for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                assert_eq!(
                    u64::from_str_radix(&field(set), 16).unwrap(),
                    capabilities,
                    "{part} {set}\n{status}"
                );
            }
            assert_eq!(
                (field("NoNewPrivs:"), field("Seccomp:")),
                ("1".into(), "2".into()),
                "{part}\n{status}"
            );
            assert_eq!(field("Uid:"), user, "{part}");
        }
    }

    // A shell in the prober's place: the same pod but for the program.
    let shell = json!({"image": CLIENT, "imagePullPolicy": "Never", "command": ["/bin/wait"], "args": null,
        "startupProbe": null, "livenessProbe": null, "readinessProbe": null});
    in_place_of_a_prober(&installed, "shell", &shell);
    let exec = |words: &[&str]| {
        let mut kubectl = cluster.kubectl();
        kubectl.args(["exec", NAMESPACE, "shell", "--"]).args(words);
        String::from_utf8(command::output(&mut kubectl, None).unwrap().stdout).unwrap()
    };
    let tried = "raw-socket EPERM\npacket-socket EPERM\nbpf EPERM\nwrite-to-root EROFS\napi-token ENOENT\n\
                 become-root EPERM\n";
    assert_eq!(exec(&["attempt"]), tried);
    // Its one token is for the correlator: the API server does not know whose it is.
    let token = exec(&["cat", "/var/run/secrets/nslookout/token"]);
    let kubeconfig = fs::read_to_string(&cluster.kubeconfig).unwrap();
    let mut stranger: Value = serde_json::from_str(&kubeconfig).unwrap();
    stranger["users"][0]["user"] = json!({"token": token.trim()});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    fs::write(&file, stranger.to_string()).unwrap();
    let mut kubectl = cluster.kubectl();
    kubectl.env("KUBECONFIG", &file).args(["get", "pods", NAMESPACE]);
    let answer = command::output(&mut kubectl, None).unwrap();
    let said = String::from_utf8(answer.stderr).unwrap();
    assert!(!answer.status.success() && said.contains("Unauthorized"), "{said}");

    // The real prober in the same place, that says it is another node's.
    let liar = json!({"env": env_of_a_prober(&installed, "node-b")});
    in_place_of_a_prober(&installed, "liar", &liar);
    let begin = Instant::now();
    let refused = loop {
        let log = cluster.run(&["logs", NAMESPACE, "deploy/nslookout-correlator"]).unwrap();
        let told = cluster.run(&["logs", NAMESPACE, "liar"]).unwrap();
        if let Some(line) = log.lines().find(|line| line.contains("foreign"))
            && told.contains("the correlator refuses with status 403")
        {
            break line.to_owned();
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "nobody was refused\n{log}");
        thread::sleep(Duration::from_millis(300));
    };
    println!("{refused}");
    assert!(refused.contains("a batch of node \\\"node-b\\\" by a sender on \\\"node-a\\\""), "{refused}");
    assert_eq!(installed.status().unwrap().state, "healthy");
    installed.cluster.down().unwrap();
}

/// A pod on node-a like the prober's own, with these changes of its container.
fn in_place_of_a_prober(installed: &Installed, name: &str, changes: &Value) {
    let mut spec = prober(installed)["spec"].take();
    spec["nodeName"] = "node-a".into();
    for (key, value) in changes.as_object().into_iter().flatten() {
        spec["containers"][0][key] = value.clone();
    }
    let metadata = json!({"name": name, "namespace": "nslookout"});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    installed.cluster.create(&pod).unwrap();
    let running = ["wait", "--for=jsonpath={.status.phase}=Running", NAMESPACE, "--timeout=60s"];
    installed.cluster.run(&[&running[..], &[&format!("pod/{name}")]].concat()).unwrap();
}

fn env_of_a_prober(installed: &Installed, node: &str) -> Value {
    let mut env = prober(installed)["spec"]["containers"][0]["env"].take();
    for variable in env.as_array_mut().into_iter().flatten().filter(|one| one["name"] == "NSLOOKOUT_NODE") {
        *variable = json!({"name": "NSLOOKOUT_NODE", "value": node});
    }
    env
}

/// The template of its pods.
fn prober(installed: &Installed) -> Value {
    let words = ["get", "daemonset", NAMESPACE, "nslookout-prober", "--output=json"];
    installed.cluster.json(&words).unwrap()["spec"]["template"].take()
}
