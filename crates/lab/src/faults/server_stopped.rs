//! One server hangs: its process is stopped, its socket still takes queries.

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "server-stopped",
    title: "one CoreDNS pod hangs",
    expected: Expected { cause: "server-silent", certain: false, scope: Scope::Servers },
    touches_servers: true,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let server = injection.server()?;
    injection.will(Undo::Continue(server.name.clone()))?;
    server.daemon.stop()
}
