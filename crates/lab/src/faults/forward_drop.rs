//! A rule in a node's FORWARD chain drops DNS, as a network policy gone wrong would.

use super::rule::{Rule, dns_ports};
use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::Error;

pub(super) static FAULT: Fault = Fault {
    name: "forward-drop",
    title: "a rule in a node's FORWARD chain drops DNS",
    expected: Expected { cause: "policy-drop", certain: false, scope: Scope::Node },
    touches_servers: false,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let node = injection.node()?;
    let ports = dns_ports(injection.site.service.target_port);
    let words = format!("-p udp -m multiport --dports {ports} -j DROP");
    for rule in [
        Rule::v4(&node.netns, "filter", "FORWARD", &words),
        Rule::v6(&node.netns, "filter", "FORWARD", &words),
    ] {
        injection.will(Undo::Rule(rule.clone()))?;
        rule.insert()?;
    }
    Ok(())
}
