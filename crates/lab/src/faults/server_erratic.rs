//! One server takes every query and answers none, while its health port says that all is well.

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "server-erratic",
    title: "one CoreDNS pod answers nothing while its health port does",
    expected: Expected { cause: "server-silent", certain: false, scope: Scope::Servers },
    touches_servers: true,
    // A cluster's CoreDNS has its configuration from a ConfigMap, which takes a minute to reach it.
    on_cluster: false,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let server = injection.server()?;
    injection.will(Undo::Restore(server.name.clone()))?;
    server.configure(&corefile(server.port))
}

/// CoreDNS's own plugin for the purpose: of every 1 query it drops 1.
fn corefile(port: u16) -> String {
    format!(
        ".:{port} {{
    errors
    health :8080
    ready :8181
    prometheus :9153
    erratic {{
        drop 1
    }}
}}
"
    )
}
