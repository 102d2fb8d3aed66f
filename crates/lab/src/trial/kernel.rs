//! What did the kernel itself count, by tools that share nothing with nslookout?

use std::path::Path;

use crate::faults::Active;
use crate::{Error, Site, command};

/// Packets that the node's conntrack dropped for want of an entry, since its namespace is there: `drop` without
/// `insert_failed`, of any protocol and port.
pub fn refused_by_full_table(netns: &Path) -> Result<u64, Error> {
    let text = command::run(command::inside(netns, "conntrack").arg("-S"), None)?;
    Ok(sum(&text, "drop=").saturating_sub(sum(&text, "insert_failed=")))
}

/// Packets that the fault's own rules have dropped so far, by the rules' own counters; none where it has no rule.
pub fn dropped_by_rules(site: &Site, active: &Active) -> Result<Option<u64>, Error> {
    let (netns, chain) = match (active.fault.as_str(), &active.pod, &active.node) {
        ("pod-drop", Some(pod), _) => (&site.pod(pod)?.netns, "OUTPUT"),
        ("forward-drop", _, Some(node)) => (&site.node(node)?.netns, "FORWARD"),
        _ => return Ok(None),
    };
    let mut packets = 0;
    for program in ["iptables", "ip6tables"] {
        let mut list = command::inside(netns, program);
        packets += rule_packets(&command::run(list.args(["-w", "-v", "-x", "-n", "-L", chain]), None)?);
    }
    Ok(Some(packets))
}

/// The sum of a counter over all CPUs.
fn sum(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// The first column of the lines of a fault's own rules: no other rule that drops has a list of ports.
fn rule_packets(list: &str) -> u64 {
    list.lines()
        .filter(|line| line.contains("DROP") && line.contains("multiport"))
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_cpus_are_summed_and_early_drops_are_none() {
        let text = "cpu=0   \tfound=1 insert_failed=2 drop=7 early_drop=50 error=0\n\
                    cpu=1   \tfound=1 insert_failed=1 drop=1 early_drop=0 error=0\n";
        assert_eq!((sum(text, "drop="), sum(text, "insert_failed=")), (8, 3));
    }

    #[test]
    fn only_the_rule_with_the_dns_ports_counts() {
        let list = "Chain FORWARD (policy ACCEPT 90 packets, 6000 bytes)\n\
            \x20   pkts      bytes target     prot opt in     out     source               destination\n\
            \x20     42     2800 DROP       17   --  *      *       0.0.0.0/0            0.0.0.0/0            multiport dports 53,5353\n\
            \x20    900     9000 DROP       17   --  *      *       0.0.0.0/0            0.0.0.0/0            udp dpt:9999\n";
        assert_eq!(rule_packets(list), 42);
    }
}
