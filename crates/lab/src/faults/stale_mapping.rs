//! A server is gone, the Service no longer has it, and a client's pinned port is still mapped to it.
//!
//! The entry is not cleaned on the client's node, as when kube-proxy failed to; each query of the client renews it.

use std::time::Duration;

use rand::RngExt;

use super::undo::Undo;
use super::{Expected, Fault, Injection, Scope};
use crate::miniature::coredns::CLUSTER_NAME;
use crate::site::{Pod, Server};
use crate::traffic::Question;
use crate::traffic::job::Job;
use crate::traffic::pinned::{self, Pinned};
use crate::{Error, Site, command};

pub(super) static FAULT: Fault = Fault {
    name: "stale-mapping",
    title: "a server is gone and a client with a pinned port is still mapped to it",
    expected: Expected { cause: "stale-mapping", certain: true, scope: Scope::Node },
    touches_servers: true,
    on_cluster: true,
    inject,
};

fn inject(injection: &mut Injection) -> Result<(), Error> {
    let (site, pod) = (injection.site, injection.pod()?);
    let server = injection.server()?;
    let port = port_that_leads_to(injection, site, pod, server)?;
    injection.client(pod, Some(port));
    let pinned = Pinned {
        pod: pod.netns.clone(),
        target: injection.service(),
        port,
        queries_per_second: 20,
        name: CLUSTER_NAME.to_owned(),
    };
    let helper = injection.start(&site.node(&pod.node)?.netns, &Job::Pinned(pinned))?;
    helper.wait_for(Duration::from_secs(5), |report| report.clients.iter().any(|seen| seen.answered >= 5))?;
    injection.will(Undo::Endpoints)?;
    injection.will(Undo::Start(server.name.clone()))?;
    site.lose_server(server, &pod.node)?;
    // Till here the client was well.
    injection.begins();
    Ok(())
}

/// Which server a port is mapped to is drawn by the rules when its first query comes. So ports are tried.
fn port_that_leads_to(
    injection: &mut Injection,
    site: &Site,
    pod: &Pod,
    server: &Server,
) -> Result<u16, Error> {
    let question = Question::for_address(CLUSTER_NAME)?;
    let node = site.node(&pod.node)?;
    let (family, client, backend) = if injection.choice.ipv6 {
        ("ipv6", pod.v6.to_string(), server.v6.to_string())
    } else {
        ("ipv4", pod.v4.to_string(), server.v4.to_string())
    };
    for _ in 0..TRIES {
        let port = injection.rng.random_range(6_000..9_000);
        if !pinned::ask_once(&pod.netns, injection.service(), port, &question)? {
            continue;
        }
        let mut list = command::inside(&node.netns, "conntrack");
        list.args(["-L", "-f", family, "-p", "udp", "-s", &client, "--sport", &port.to_string()]);
        if command::run(&mut list, None)?.contains(&format!("src={backend} ")) {
            return Ok(port);
        }
    }
    Err(Error::NotReady {
        what: format!("a port of {} that is mapped to {}", pod.name, server.name),
        seconds: 0,
        last: format!("{TRIES} ports were tried"),
        log: String::new(),
    })
}

/// With two servers each try succeeds half of the time.
const TRIES: u32 = 40;
