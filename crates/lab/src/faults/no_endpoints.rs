//! No server is ready, so the DNS Service has no endpoints: kube-proxy rejects every query. The miniature's servers run
//! on, a cluster's are gone.

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "no-endpoints",
    title: "the DNS Service has no endpoints",
    expected: Expected { cause: "no-endpoints", certain: true, scope: Scope::Cluster },
    touches_servers: true,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    injection.will(Undo::Endpoints)?;
    injection.site.no_server_serves()?;
    injection.begins();
    Ok(())
}
