//! How is a real CoreDNS configured here, started, and told to change?

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::Daemon;
use crate::site::{Server, Site, replace};
use crate::{Error, alertmanager, dns, programs};

/// A name that every cluster has.
pub const CLUSTER_NAME: &str = "kubernetes.default.svc.cluster.local";

/// A name that the upstream serves.
pub const OUTER_NAME: &str = "example.com";

/// The configuration of a server of the cluster. Nothing is cached, so that a fault of the upstream shows in each
/// lookup; cluster names come from a zone file in the place of the API.
pub fn server_corefile(port: u16, zone: &Path, upstream: std::net::Ipv4Addr) -> String {
    format!(
        "cluster.local:{port} {{
    errors
    prometheus :9153
    file {zone}
}}
.:{port} {{
    errors
    health :8080
    ready :8181
    prometheus :9153
    forward . {upstream}:53 {{
        health_check 500ms
    }}
}}
",
        zone = zone.display(),
    )
}

/// The configuration of the upstream: example.com and example.org have addresses, nothing else exists.
pub fn upstream_corefile(zones: &Path) -> String {
    let mut text = String::new();
    for zone in OUTER_ZONES {
        let file = zones.join(format!("{zone}.zone"));
        text += &format!("{zone}:53 {{\n    errors\n    prometheus :9153\n    file {}\n}}\n", file.display());
    }
    text + ".:53 {
    errors
    health :8080
    prometheus :9153
    template ANY ANY . {
        rcode NXDOMAIN
        authority \". 5 IN SOA ns.invalid. hostmaster.invalid. 1 60 60 60 5\"
    }
}
"
}

/// Writes the zone files and the first configuration of each server and the upstream.
pub fn write_files(site: &Site) -> Result<(), Error> {
    let services: String = (1..=9)
        .map(|n| {
            format!("web-{n}.default.svc IN A 10.96.1.{n}\nweb-{n}.default.svc IN AAAA fd00:96::1:{n}\n")
        })
        .collect();
    let cluster = format!(
        "kubernetes.default.svc IN A 10.96.0.1\n\
         kubernetes.default.svc IN AAAA fd00:96::1\n\
         kube-dns.kube-system.svc IN A {}\n\
         kube-dns.kube-system.svc IN AAAA {}\n\
         v4only.default.svc IN A 10.96.2.1\n\
         v6only.default.svc IN AAAA fd00:96::2:1\n{services}",
        site.service.v4.ip(),
        site.service.v6.ip(),
    );
    write_zone(&cluster_zone(&site.dir), "cluster.local", &cluster)?;
    for zone in OUTER_ZONES {
        let records = "@ IN A 192.0.2.80\n@ IN AAAA 2001:db8::80\nwww IN A 192.0.2.81\nwww IN AAAA 2001:db8::81\n\
                       api IN A 192.0.2.82\napi IN AAAA 2001:db8::82\n";
        write_zone(&site.dir.join(format!("{zone}.zone")), zone, records)?;
    }
    for server in &site.servers {
        replace(&server.corefile, server.pristine.as_bytes())?;
    }
    replace(&site.upstream.corefile, site.upstream.pristine.as_bytes())
}

/// Where the zone of cluster.local lies.
pub fn cluster_zone(dir: &Path) -> PathBuf {
    dir.join("cluster.local.zone")
}

/// The process of a CoreDNS in a namespace.
pub fn daemon(name: &str, netns: &Path, dir: &Path) -> Daemon {
    let corefile = dir.join(format!("{name}.corefile"));
    Daemon {
        name: name.to_owned(),
        netns: netns.to_owned(),
        program: programs::coredns_path(),
        args: vec!["-conf".to_owned(), corefile.display().to_string()],
        log: dir.join(format!("{name}.log")),
        pid_file: dir.join(format!("{name}.pid")),
    }
}

/// Replaces the configuration, asks for a reload (SIGUSR1) and waits till CoreDNS says in its log that it is done.
pub fn configure(daemon: &Daemon, corefile: &Path, text: &str) -> Result<(), Error> {
    let id = daemon.running()?;
    replace(corefile, text.as_bytes())?;
    let from = daemon.log_length();
    id.signal(Signal::SIGUSR1)?;
    let mut refused = false;
    dns::wait_for(&format!("the new configuration of {}", daemon.name), RELOAD, Some(daemon), || {
        let news = read_from(&daemon.log, from).unwrap_or_default();
        refused = news.contains("[ERROR]");
        if refused || news.contains("Reloading complete") { Ok(()) } else { Err("no word of it".to_owned()) }
    })?;
    if !refused {
        return Ok(());
    }
    Err(Error::NotReady {
        what: format!("the new configuration of {}", daemon.name),
        seconds: 0,
        last: "CoreDNS refused it".to_owned(),
        log: daemon.log_tail(),
    })
}

/// Waits till the ready plugin says that all plugins are.
pub fn wait_till_ready(server: &Server, deadline: Duration) -> Result<(), Error> {
    let address = (server.v4, 8181).into();
    dns::wait_for(&format!("{}'s /ready", server.name), deadline, Some(&server.daemon), || {
        match alertmanager::http_get(&server.netns, address, "/ready") {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(error.to_string()),
        }
    })
}

fn write_zone(path: &Path, zone: &str, records: &str) -> Result<(), Error> {
    let text = format!(
        "$ORIGIN {zone}.\n$TTL 30\n@ IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ IN NS ns.dns\nns.dns IN A 192.0.2.53\n{records}"
    );
    fs::write(path, text).map_err(Error::file("write", path))
}

fn read_from(path: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const OUTER_ZONES: [&str; 2] = ["example.com", "example.org"];

/// A reload takes some 50 ms, on a busy machine more.
const RELOAD: Duration = Duration::from_secs(10);
