//! No server is ready, so the DNS Service has no endpoints: kube-proxy rejects every query. The servers themselves run on.

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "no-endpoints",
    title: "the DNS Service has no endpoints",
    expected: Expected { cause: "no-endpoints", certain: true, scope: Scope::Cluster },
    touches_servers: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    injection.will(Undo::Endpoints)?;
    let all = injection.site.servers.iter().map(|server| server.name.clone()).collect();
    injection.site.change_endpoints(|endpoints| endpoints.unready = all)
}
