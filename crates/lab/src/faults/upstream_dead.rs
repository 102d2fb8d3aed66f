//! The upstream name server is dead: cluster names resolve, forwarded ones don't.

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "upstream-dead",
    title: "the upstream name server is dead",
    expected: Expected { cause: "upstream-failing", certain: false, scope: Scope::Cluster },
    touches_servers: false,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    injection.blame_upstream();
    injection.will(Undo::StartUpstream)?;
    injection.site.upstream.daemon.kill()
}
