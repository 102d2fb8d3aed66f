//! A rule in one pod's own namespace drops the DNS that the pod sends, as a sidecar or a policy engine might:
//! the pod's own send fails with EPERM.

use super::rule::{Rule, dns_ports};
use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "pod-drop",
    title: "a rule in a pod's own namespace drops the DNS it sends",
    expected: Expected { cause: "policy-drop", certain: false, scope: Scope::Pod },
    touches_servers: false,
    // Of a cluster's pods only the prober's own ask without end.
    on_cluster: false,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let pod = injection.pod()?;
    injection.active.pod = Some(pod.name.clone());
    injection.client(pod, None);
    let ports = dns_ports(injection.site.service.target_port);
    let words = format!("-p udp -m multiport --dports {ports} -j DROP");
    for rule in
        [Rule::v4(&pod.netns, "filter", "OUTPUT", &words), Rule::v6(&pod.netns, "filter", "OUTPUT", &words)]
    {
        injection.will(Undo::Rule(rule.clone()))?;
        rule.insert()?;
    }
    Ok(())
}
