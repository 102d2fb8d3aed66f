//! How does a real Alertmanager run in the cluster, and how is it asked?
//!
//! As most clusters have it: a StatefulSet with a headless Service, in a namespace of its own. Its pod has dnsPolicy
//! Default, so the name of its webhook is asked of the node's own name server and never of the cluster's: it can call
//! while the cluster's DNS is dead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kubernetes::image::Image;
use crate::kubernetes::plan::Cluster;
use crate::kubernetes::{upstream, webhook};
use crate::{Error, command, programs};

/// Its namespace.
pub const NAMESPACE: &str = "monitoring";

/// Its headless Service, named as Prometheus' operator names it.
pub const SERVICE: &str = "alertmanager-operated";

/// The name of its StatefulSet; the pod is this with "-0".
pub const NAME: &str = "alertmanager";

/// Its port.
pub const PORT: u16 = 9093;

impl Cluster {
    /// Loads Alertmanager's image into every node.
    pub fn load_alertmanager(&self) -> Result<(), Error> {
        let archive = self.dir.join("alertmanager.tar");
        image(&programs::alertmanager()?)?.write(&archive)?;
        self.load_image(&archive)
    }

    /// Loads Alertmanager's image, creates what it needs on this node and waits till it is ready. It calls
    /// [`webhook::Webhook`], by name.
    pub fn install_alertmanager(&self, node: &str) -> Result<(), Error> {
        self.load_alertmanager()?;
        self.create(&manifests(node))?;
        self.run(&[
            "rollout",
            "status",
            &format!("statefulset/{NAME}"),
            &format!("--namespace={NAMESPACE}"),
            &format!("--timeout={}s", DEADLINE.as_secs()),
        ])
        .map(drop)
    }
}

/// Debian's program is dynamic: it comes with the libraries that it is linked to, at their places.
fn image(program: &Path) -> Result<Image, Error> {
    let templates = program.parent().and_then(Path::parent).unwrap_or(program).join(TEMPLATES);
    let mut image = Image::new(IMAGE).file("bin/alertmanager", program);
    for library in libraries(program)? {
        image = image.file(library.strip_prefix("/").unwrap_or(&library).to_string_lossy(), &library);
    }
    for template in ["default.tmpl", "email.tmpl"] {
        image = image.file(format!("usr/{TEMPLATES}/{template}"), templates.join(template));
    }
    Ok(image.folder("tmp", 0o1777).entrypoint(&["/bin/alertmanager"]).user("65534:65534"))
}

/// The files that ldd names: "libc.so.6 => /lib/…/libc.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2 (0x…)".
fn libraries(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let text = command::run(Command::new("ldd").arg(program), None)?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

fn manifests(node: &str) -> Value {
    let labels = json!({ "app.kubernetes.io/name": NAME });
    let metadata = |name: &str| json!({ "name": name, "namespace": NAMESPACE, "labels": labels });
    let ready = json!({ "httpGet": { "path": "/-/ready", "port": PORT }, "periodSeconds": 1, "failureThreshold": 30 });
    let container = json!({
        "name": NAME,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": [
            "--config.file=/etc/alertmanager/alertmanager.json",
            "--storage.path=/alertmanager",
            format!("--web.listen-address=:{PORT}"),
            "--cluster.listen-address=",
        ],
        // glibc's resolver would want modules that the image has not.
        "env": [{ "name": "GODEBUG", "value": "netdns=go" }],
        "ports": [{ "name": "web", "containerPort": PORT }],
        "readinessProbe": ready,
        "volumeMounts": [
            { "name": "config", "mountPath": "/etc/alertmanager", "readOnly": true },
            { "name": "data", "mountPath": "/alertmanager" },
        ],
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } },
        {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(NAME),
            "data": { "alertmanager.json": configuration().to_string() },
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(SERVICE),
            "spec": {
                "clusterIP": "None", "selector": labels,
                "ports": [{ "name": "web", "port": PORT, "targetPort": "web" }],
            },
        },
        {
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata(NAME),
            "spec": {
                "replicas": 1, "serviceName": SERVICE, "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "dnsPolicy": "Default",
                        "automountServiceAccountToken": false,
                        "nodeSelector": { "kubernetes.io/hostname": node },
                        "securityContext": { "fsGroup": 65534 },
                        "containers": [container],
                        "volumes": [
                            { "name": "config", "configMap": { "name": NAME } },
                            { "name": "data", "emptyDir": {} },
                        ],
                    },
                },
            },
        },
    ] })
}

/// Each alert is told by itself, at once, and once. YAML's parser reads JSON, too.
fn configuration() -> Value {
    json!({
        "route": {
            "receiver": "pager", "group_by": ["..."],
            "group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h",
        },
        "receivers": [{
            "name": "pager",
            "webhook_configs": [{
                "url": format!("http://{}:{}/", upstream::PAGER, webhook::PORT),
                "send_resolved": true,
            }],
        }],
    })
}

/// Its image.
pub const IMAGE: &str = "docker.io/nslookout-lab/alertmanager:0.25";

/// Below /usr, as Debian's program has it built in.
const TEMPLATES: &str = "share/prometheus/alertmanager";

const DEADLINE: Duration = Duration::from_secs(60);
