//! What answers for the world outside of the cluster?
//!
//! A CoreDNS of the lab's own beside the nodes, as the miniature's: example.com and example.org have addresses,
//! nothing else exists.

use std::fs;
use std::path::Path;

use crate::Error;
use crate::kubernetes::plan::{self, MONITOR_V4, Options, UPSTREAM_V4, UPSTREAM_V6};
use crate::miniature::coredns;
use crate::programs::cluster::ClusterPrograms;
use crate::site::Upstream;

/// Its namespace, addresses and process.
pub fn plan(options: &Options, programs: &ClusterPrograms, dir: &Path) -> Upstream {
    let netns = plan::netns(&options.name, "upstream");
    let corefile = dir.join("upstream.corefile");
    let args = vec!["-conf".to_owned(), corefile.display().to_string()];
    Upstream {
        v4: UPSTREAM_V4,
        v6: UPSTREAM_V6,
        pristine: coredns::upstream_corefile(dir),
        daemon: plan::daemon("upstream", &netns, dir, programs.coredns.clone(), args),
        corefile,
        netns,
    }
}

/// Its configuration and zones.
pub fn write_files(upstream: &Upstream, dir: &Path) -> Result<(), Error> {
    for (zone, text) in ZONES {
        let path = dir.join(format!("{zone}.zone"));
        let pager = format!("pager IN A {MONITOR_V4}\n");
        let soa = "$TTL 30\n@ IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ IN NS ns.dns\nns.dns IN A 192.0.2.53\n";
        fs::write(&path, format!("$ORIGIN {zone}.\n{soa}{text}{pager}"))
            .map_err(Error::file("write", path))?;
    }
    fs::write(&upstream.corefile, &upstream.pristine).map_err(Error::file("write", &upstream.corefile))
}

/// The webhook that the cluster's Alertmanager calls; it is in the monitor namespace.
pub const PAGER: &str = "pager.example.com";

const RECORDS: &str = "@ IN A 192.0.2.80\n@ IN AAAA 2001:db8::80\nwww IN A 192.0.2.81\nwww IN AAAA 2001:db8::81\n\
                       api IN A 192.0.2.82\napi IN AAAA 2001:db8::82\n";

const ZONES: [(&str, &str); 2] = [("example.com", RECORDS), ("example.org", RECORDS)];
