//! Does evidence get from agents to the correlator, once and in order, and does nobody else's?
//!
//! Real processes of the built binary, real TLS over loopback; tokens by file, for there is no API server here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod blind;
mod many;
#[path = "../alertmanager/program.rs"]
mod program;
mod refusals;
mod site;
mod years;

use std::time::Duration;

use evidence::wire::Parcel;
use evidence::{
    Batch, BootTime, ClockReading, Coverage, CoverageState, Lookup, LookupId, NameKind, Observation,
    Observer, Outcome, Role, ServerRole,
};
use nslookout::transport::pack::pack;
use site::Site;

/// A batch of a prober with so many lookups that were answered.
fn parcel(node: &str, life: u64, sequence: u64, lookups: u64) -> Parcel {
    let now = BootTime::now();
    let lookup = |id| {
        Observation::Lookup(Lookup {
            id: LookupId(sequence * 1000 + id),
            vantage: node.into(),
            profile: "musl".into(),
            server: "10.96.0.10:53".parse().unwrap(),
            role: ServerRole::Service,
            name: "kubernetes.default.svc.cluster.local.".into(),
            name_kind: NameKind::Cluster,
            started: BootTime(now.0 - 1_000_000 * id),
            ended: now,
            outcome: Outcome::Addresses,
            packets: 2,
        })
    };
    let batch = Batch {
        node: node.into(),
        role: Role::Prober,
        boot_id: "0f3c5f0e-6f5c-4b8e-9c68-000000000000".into(),
        sequence,
        clock: ClockReading::now(),
        from: now,
        to: now,
        observations: (0..lookups).map(lookup).collect(),
        coverage: vec![Coverage {
            observer: Observer::Prober,
            place: node.into(),
            state: CoverageState::Looked { lost: 0 },
        }],
    };
    Parcel { life, batch }
}

fn letter(parcel: &Parcel) -> bytes::Bytes {
    pack(&parcel.to_bytes()).into()
}

#[test]
fn what_agents_of_two_nodes_see_reaches_the_correlator() {
    let mut site = Site::new(&["node-a", "node-b"]);
    site.start_dns();
    // The agents are there first: they wait for certificate and correlator, and lose nothing.
    let agents = [
        site.start_agent("node-a", "prober"),
        site.start_agent("node-b", "prober"),
        site.start_agent("node-a", "node"),
    ];
    site.wait("agents live without a correlator", || agents.iter().all(|agent| agent.alive().0 == 0));
    site.wait("they keep what they see", || agents[0].figure("nslookout_agent_spool_batches") > 0);
    assert!(agents[0].alive().1.contains("evidence is kept"), "{}", agents[0].alive().1);
    site.start_correlator();

    for (node, role) in [("node-a", "prober"), ("node-b", "prober"), ("node-a", "node")] {
        let name = format!("nslookout_batches_total{{node=\"{node}\",role=\"{role}\"}}");
        site.wait(&name, || site.figure(&name) > 1);
    }
    site.wait("DNS is well", || site.status()["state"] == "healthy");
    for agent in &agents {
        site.wait("the spool is empty", || agent.figure("nslookout_agent_spool_batches") == 0);
        assert_eq!(agent.figure("nslookout_agent_batches_total{result=\"dropped\"}"), 0);
        assert!(agent.alive().1.contains("1 servers known"), "{}", agent.alive().1);
    }
    assert_eq!(site.correlator_process().alive().0, 0);
    // Quiet ones put five seconds together.
    std::thread::sleep(Duration::from_secs(31));
    let before: Vec<u64> = agents.iter().map(|a| a.figure("nslookout_agent_sealed_total")).collect();
    std::thread::sleep(Duration::from_secs(11));
    for (agent, before) in agents.iter().zip(before) {
        let sealed = agent.figure("nslookout_agent_sealed_total") - before;
        let bytes = agent.figure("nslookout_agent_bytes_total");
        let batches = agent.figure("nslookout_agent_batches_total{result=\"accepted\"}");
        eprintln!(
            "{}: {sealed} batches in 11 s, {} bytes each, {}",
            agent.socket.file_name().unwrap().display(),
            bytes / batches,
            agent.memory()
        );
        assert!((1..=4).contains(&sealed), "{sealed}");
    }
    for name in ["correlator", "node-a-prober", "node-b-prober", "node-a-node"] {
        assert!(!site.log(name).contains("refused"), "{}", site.log(name));
    }
}

#[test]
fn what_a_killed_correlator_missed_is_sent_later_and_counted_once() {
    // Nobody answers DNS: batches leave as fast as they can.
    let mut site = Site::new(&["node-a"]);
    site.start_correlator();
    let agent = site.start_agent("node-a", "prober");
    let accepted = || agent.figure("nslookout_agent_batches_total{result=\"accepted\"}");
    site.wait("batches flow", || accepted() > 5);
    site.kill_correlator();
    let before = loop {
        let count = accepted();
        std::thread::sleep(Duration::from_millis(500));
        if accepted() == count {
            break count;
        }
    };
    site.wait("batches wait", || agent.figure("nslookout_agent_spool_batches") > 10);
    assert_eq!(agent.alive().0, 0);
    site.start_correlator();
    let taken = "nslookout_batches_total{node=\"node-a\",role=\"prober\"}";
    site.wait("all that waited is there, once", || {
        let count = accepted();
        let there = site.figure(taken);
        count > before + 10 && accepted() == count && there == count - before
    });
    assert_eq!(site.figure("nslookout_wire_missing_batches"), 0);
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"duplicate\"}"), 0);
    assert_eq!(agent.figure("nslookout_agent_batches_total{result=\"dropped\"}"), 0);
    eprintln!(
        "busy: {} bytes a batch, agent's {}, correlator's {}",
        agent.figure("nslookout_agent_bytes_total") / accepted(),
        agent.memory(),
        site.correlator_process().memory()
    );
}

#[test]
fn what_finds_no_room_in_the_spool_is_counted_and_told_as_lost() {
    let mut site = Site::new(&["node-a"]);
    let agent = site.start_agent_with("node-a", "prober", 5);
    site.wait("batches are dropped", || {
        agent.figure("nslookout_agent_batches_total{result=\"dropped\"}") > 10
    });
    assert!(agent.figure("nslookout_agent_spool_batches") <= 5);
    site.start_correlator();
    site.wait("the rest is sent", || agent.figure("nslookout_agent_spool_batches") == 0);
    let told = "nslookout_observer_lost_total{observer=\"prober\",place=\"node-a\"}";
    site.wait("all of the loss is told", || {
        let lost = agent.figure("nslookout_agent_lost_total");
        // At least: a batch that was under way when it was dropped may have arrived, and is told as lost all the same.
        lost > 10 && site.figure(told) >= lost
    });
    eprintln!("lost {}, told {}", agent.figure("nslookout_agent_lost_total"), site.figure(told));
}

#[test]
fn who_can_not_work_says_what_is_missing() {
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_nslookout")).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["correlator"]);
    assert!(code == Some(2) && said.contains("correlator.tokens"), "{said}");
    let (code, said) = run(&["alive", "--socket", "/no/such.sock"]);
    assert!(code == Some(2) && said.contains("/no/such.sock"), "{said}");
    assert_eq!(run(&["agent"]).0, Some(64));

    // An agent stays, and says it.
    let site = Site::new(&["node-a"]);
    let agent = site.start_agent("node-a", "prober");
    std::fs::remove_file(site.path("node-a-prober")).unwrap();
    site.wait("the missing file is named", || agent.alive().1.contains("node-a-prober: No such file"));
    assert_eq!(agent.alive().0, 0);
    std::fs::write(site.path("node-a-prober"), "node-a-prober").unwrap();
    site.wait("the next one", || agent.alive().1.contains("ca.crt: No such file"));
}

#[tokio::test]
async fn a_batch_that_is_sent_again_counts_once_and_a_gap_is_told() {
    let mut site = Site::new(&["node-a"]);
    site.start_correlator();
    let mut line = site.line("node-a-prober");
    for (sequence, expected) in [(1, 1), (2, 2), (2, 2), (1, 2), (5, 5)] {
        let answer = line.post(letter(&parcel("node-a", 9, sequence, 3)), 0).await.unwrap();
        assert_eq!(answer.sequence, expected);
        // The inventory comes with the answer, and only to who has it not.
        let outlook = answer.outlook.unwrap();
        assert_eq!(outlook.inventory.unwrap().service.addresses, [site.dns]);
        let again = line.post(letter(&parcel("node-a", 9, sequence, 3)), outlook.tag).await.unwrap();
        assert_eq!(again.outlook.unwrap().inventory, None);
    }
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"accepted\"}"), 3);
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"duplicate\"}"), 7);
    site.wait("the gap", || site.figure("nslookout_wire_missing_batches") == 2);
    site.wait("lookups count once", || site.status()["lookups"]["made"] == 9);
}

#[tokio::test]
async fn a_hundred_agents_are_served_over_as_many_connections() {
    let nodes: Vec<String> = (0..100).map(|i| format!("node-{i}")).collect();
    let mut site = Site::new(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
    site.start_correlator();
    let mut senders = tokio::task::JoinSet::new();
    for node in nodes {
        let mut line = site.line(&format!("{node}-prober"));
        senders.spawn(async move {
            for sequence in 1..=5 {
                line.post(letter(&parcel(&node, 1, sequence, 3)), 0).await.unwrap();
            }
            line
        });
    }
    let lines = senders.join_all().await;
    assert_eq!(site.figure("nslookout_wire_batches_total{result=\"accepted\"}"), 500);
    assert_eq!(site.figure("nslookout_wire_connections"), 100);
    site.wait("all is judged", || site.status()["lookups"]["made"] == 1500);
    assert_eq!(site.figure("nslookout_wire_missing_batches"), 0);
    eprintln!("correlator's memory with {} agents: {}", lines.len(), site.correlator_process().memory());
}
