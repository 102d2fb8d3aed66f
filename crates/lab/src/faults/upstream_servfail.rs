//! The upstream name server answers SERVFAIL to everything: cluster names resolve, forwarded ones don't.

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "upstream-servfail",
    title: "the upstream name server answers SERVFAIL",
    expected: Expected { cause: "upstream-failing", certain: false, scope: Scope::Cluster },
    touches_servers: false,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    injection.blame_upstream();
    injection.will(Undo::RestoreUpstream)?;
    injection.site.upstream.configure(COREFILE)
}

const COREFILE: &str = ".:53 {
    errors
    health :8080
    prometheus :9153
    template ANY ANY . {
        rcode SERVFAIL
    }
}
";
