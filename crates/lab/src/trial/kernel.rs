//! What did the kernel itself count, by tools that share nothing with nslookout?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

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

/// The pods that have sent by way of an entry to the fault's server on the fault's node since the fault was complete:
/// what is left of such an entry's time is more than if it had begun to run down before.
pub fn still_sending(site: &Site, active: &Active) -> Result<BTreeSet<String>, Error> {
    let (Some(node), [server]) = (&active.node, active.servers.as_slice()) else {
        return Ok(BTreeSet::new());
    };
    let (netns, server) = (&site.node(node)?.netns, site.server(server)?);
    let mut timeouts = [0; 2];
    for (timeout, name) in timeouts.iter_mut().zip(["udp_timeout", "udp_timeout_stream"]) {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        *timeout =
            command::run(command::inside(netns, "cat").arg(path), None)?.trim().parse().unwrap_or_default();
    }
    let mut sending = BTreeSet::new();
    for (family, backend) in [("ipv4", IpAddr::V4(server.v4)), ("ipv6", IpAddr::V6(server.v6))] {
        let mut list = command::inside(netns, "conntrack");
        list.args(["-L", "-f", family, "-p", "udp", "--reply-src", &backend.to_string()]);
        let table = command::run(&mut list, None)?;
        let since = UNIX_EPOCH + Duration::from_millis(active.since_unix_ms);
        let elapsed = since.elapsed().unwrap_or_default().as_secs();
        let sources: Vec<_> =
            table.lines().filter_map(|entry| renewed_within(entry, elapsed, timeouts)).collect();
        let pods = site.pods.iter();
        sending.extend(
            pods.filter(|pod| sources.contains(&pod.v4.into()) || sources.contains(&pod.v6.into()))
                .map(|pod| pod.name.clone()),
        );
    }
    Ok(sending)
}

/// The source of an entry that was renewed in the last seconds, by what `conntrack -L` says is left of its time.
fn renewed_within(entry: &str, seconds: u64, [timeout, stream]: [u64; 2]) -> Option<IpAddr> {
    let left: u64 = entry.split_whitespace().nth(2)?.parse().ok()?;
    let whole = if entry.contains("[ASSURED]") { stream } else { timeout };
    let source = entry.split_whitespace().find_map(|word| word.strip_prefix("src=")?.parse().ok())?;
    // Seconds are told rounded down.
    (left + 1 + seconds >= whole).then_some(source)
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
    fn an_entry_that_runs_down_since_before_the_fault_is_no_sender() {
        let entry = |left: u64, state: &str| {
            format!(
                "udp      17 {left} src=10.244.1.7 dst=10.96.0.10 sport=4000 dport=53 src=10.244.1.2 dst=10.244.1.7 \
                 sport=5353 dport=4000 {state}mark=0 use=1"
            )
        };
        let source = Some("10.244.1.7".parse().unwrap());
        assert_eq!(renewed_within(&entry(24, ""), 5, [30, 120]), source);
        assert_eq!(renewed_within(&entry(20, ""), 5, [30, 120]), None);
        assert_eq!(renewed_within(&entry(118, "[ASSURED] "), 5, [30, 120]), source);
        assert_eq!(renewed_within(&entry(90, "[ASSURED] "), 5, [30, 120]), None);
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
