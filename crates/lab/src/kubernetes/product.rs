//! How does nslookout come into a cluster: its image onto the nodes, its chart by real Helm?

use std::path::Path;
use std::process::Command;

use crate::kubernetes::image::Image;
use crate::kubernetes::plan::Cluster;
use crate::{Error, command};

/// Where it is installed, as an argument of kubectl and helm.
pub const NAMESPACE: &str = "--namespace=nslookout";

impl Cluster {
    /// Loads the image of this binary, as `make image` makes it, into every node.
    pub fn load_nslookout(&self, binary: &Path, tag: &str) -> Result<(), Error> {
        let (stripped, archive) = (self.dir.join("nslookout"), self.dir.join("nslookout.tar"));
        command::run(Command::new("strip").arg("-o").arg(&stripped).arg(binary), None)?;
        let image = Image::new(format!("docker.io/library/nslookout:{tag}"));
        image.file("nslookout", stripped).entrypoint(&["/nslookout"]).write(&archive)?;
        self.load_image(&archive)
    }

    /// `helm install`, to be run: the chart as a user installs it, but for where the image is, and that incidents
    /// close soon.
    pub fn helm_install(&self, helm: &Path, chart: &Path) -> Command {
        let mut helm = self.administrator(helm);
        helm.arg("install").arg("nslookout").arg(chart).args([NAMESPACE, "--wait", "--timeout=180s"]);
        helm.args(["--set", "image.repository=docker.io/library/nslookout"]);
        helm.args(["--set", "image.pullPolicy=Never", "--set", "config.correlate.closeAfter=5s"]);
        helm
    }

    /// What helm is to be told of the Alertmanager that runs in this cluster: its pod's address.
    pub fn alertmanager_value(&self) -> Result<String, Error> {
        use crate::kubernetes::alertmanager::{NAME, NAMESPACE, PORT};
        let pods = self.pods(&format!("app.kubernetes.io/name={NAME}"))?;
        let address =
            pods.iter().find(|pod| pod.namespace == NAMESPACE).and_then(|pod| pod.addresses.first());
        let address =
            address.ok_or_else(|| Error::NotRunning { name: NAME.to_owned(), log: String::new() })?;
        Ok(format!("config.alertmanagers.addresses[0]=http://{}", std::net::SocketAddr::new(*address, PORT)))
    }
}
