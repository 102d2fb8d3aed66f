//! All servers hang: DNS is wholly dead while every pod is "Running".

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "servers-stopped",
    title: "all CoreDNS pods hang",
    expected: Expected { cause: "server-silent", certain: false, scope: Scope::Cluster },
    touches_servers: true,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    for server in &injection.site.servers {
        injection.blame(server);
        injection.will(Undo::Continue(server.name.clone()))?;
        server.daemon.stop()?;
    }
    Ok(())
}
