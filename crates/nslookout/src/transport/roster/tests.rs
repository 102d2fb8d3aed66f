use std::collections::BTreeMap;

use evidence::{
    Attempt, AttemptResult, BootTime, ClockReading, Coverage, Endpoint, LookupId, NameKind, QueryType,
    ServerRole, WallTime,
};

use super::*;

/// A prober's batch, with a symptom or without.
fn batch(node: &str, troubled: bool) -> Batch {
    let attempt = Attempt {
        lookup: LookupId(1),
        vantage: node.into(),
        profile: "musl".into(),
        server: ([10, 96, 0, 10], 53).into(),
        role: ServerRole::Service,
        source: ([10, 0, 0, 1], 4000).into(),
        query_id: 1,
        name: "example.com.".into(),
        name_kind: NameKind::Forwarded,
        qtype: QueryType::A,
        sent: BootTime(0),
        result: AttemptResult::Unanswered { wait_ns: 1_000_000_000 },
    };
    Batch {
        node: node.into(),
        role: Role::Prober,
        boot_id: String::new(),
        sequence: 1,
        clock: ClockReading { boot: BootTime(0), wall: WallTime(0) },
        from: BootTime(0),
        to: BootTime(0),
        observations: troubled.then_some(Observation::Attempt(attempt)).into_iter().collect(),
        coverage: vec![Coverage {
            observer: Observer::Prober,
            place: node.into(),
            state: CoverageState::Looked { lost: 0 },
        }],
    }
}

fn servers(count: u8) -> Inventory {
    let server = |last| Endpoint {
        name: format!("dns-{last}"),
        address: ([10, 244, 0, last], 53).into(),
        node: None,
        serving: true,
        leaving: false,
    };
    Inventory { endpoints: (0..count).map(server).collect(), ..Inventory::default() }
}

/// So many agents, of which each reports every five seconds, and at once while it is in trouble.
struct Cluster {
    roster: Roster,
    start: Instant,
    inventory: Inventory,
    duties: BTreeMap<String, Duty>,
}

impl Cluster {
    fn new(nodes: usize, servers_count: u8) -> Self {
        let start = Instant::now();
        let mut this = Self {
            roster: Roster::new(Config::default(), start),
            start,
            inventory: servers(servers_count),
            duties: (0..nodes).map(|n| (format!("node-{n}"), Duty::default())).collect(),
        };
        this.quiet(0..12);
        this
    }

    fn hear(&mut self, node: &str, troubled: bool, second: f64) {
        let at = self.start + Duration::from_secs_f64(second);
        let told = self.roster.hear(&batch(node, troubled), &self.inventory, at);
        if let (Some(duty), Some(present)) = (told, self.duties.get_mut(node)) {
            *present = duty;
        }
    }

    fn quiet(&mut self, seconds: std::ops::Range<u32>) {
        let names: Vec<String> = self.duties.keys().cloned().collect();
        for second in seconds {
            for name in &names {
                let number: u32 = name.trim_start_matches("node-").parse().unwrap();
                if number % 5 == second % 5 {
                    self.hear(name, false, f64::from(second) + f64::from(number) / 1e5);
                }
            }
        }
    }

    /// How many ask each server.
    fn askers(&self) -> Vec<usize> {
        let server = |address| self.duties.values().filter(|duty| duty.direct.contains(address)).count();
        self.inventory.endpoints.iter().map(|endpoint| server(&endpoint.address)).collect()
    }

    fn extra(&self) -> u64 {
        self.duties.values().map(|duty| u64::from(duty.extra_in_1000_s)).sum()
    }
}

#[test]
fn each_server_is_asked_from_three_nodes_that_report_and_from_another_once_one_is_gone() {
    let mut cluster = Cluster::new(40, 20);
    assert_eq!(cluster.askers(), [3; 20]);

    // One that asks leaves without a word.
    let gone = cluster.duties.iter().find(|(_, duty)| !duty.direct.is_empty()).unwrap().0.clone();
    cluster.duties.remove(&gone);
    assert!(cluster.askers().contains(&2));
    cluster.quiet(12..26);
    assert_eq!(cluster.askers(), [3; 20]);

    // A prober that can't ask is no help.
    let blind = cluster.duties.iter().find(|(_, duty)| !duty.direct.is_empty()).unwrap().0.clone();
    let mut batch = batch(&blind, false);
    batch.coverage[0].state = CoverageState::Denied { missing: "sockets".into() };
    let at = |second| cluster.start + Duration::from_secs(second);
    let duty = cluster.roster.hear(&batch, &cluster.inventory, at(26)).unwrap();
    assert!(duty.direct.is_empty(), "{duty:?}");
    cluster.duties.remove(&blind);
    cluster.quiet(26..34);
    assert_eq!(cluster.askers(), [3; 20]);

    // Servers come and go.
    cluster.inventory = servers(30);
    cluster.quiet(34..40);
    assert_eq!(cluster.askers(), [3; 30]);
}

#[test]
fn with_few_nodes_all_of_them_ask_and_each_may_ask_five_times_a_second() {
    let cluster = Cluster::new(2, 2);
    assert_eq!(cluster.askers(), [2; 2]);
    assert!(cluster.duties.values().all(|duty| duty.extra_in_1000_s == 5_000));
}

#[test]
fn a_new_correlator_says_nothing_before_it_has_heard_all() {
    let start = Instant::now();
    let roster = Roster::new(Config::default(), start);
    let hear = |node: &str, second| {
        roster.hear(&batch(node, false), &servers(5), start + Duration::from_secs(second))
    };
    assert_eq!(hear("node-a", 1), None);
    assert_eq!(hear("node-a", 7).unwrap().direct.len(), 5);
    let mut other = batch("node-a", false);
    other.role = Role::Node;
    assert_eq!(roster.hear(&other, &servers(5), start + Duration::from_secs(8)), None);
}

#[test]
fn ten_thousand_nodes_in_trouble_at_once_stay_below_the_ceiling() {
    let mut cluster = Cluster::new(10_000, 10);
    let ceiling = u64::from(Config::default().burst_ceiling) * 1000;
    assert!(cluster.extra() <= ceiling / 2, "{}", cluster.extra());
    let names: Vec<String> = cluster.duties.keys().cloned().collect();
    let mut most = 0;
    // Each tells of its trouble twice a second, for a minute.
    for half in 0..120_u32 {
        for (place, name) in names.iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
            let within = place as f64 / names.len() as f64 / 2.0;
            cluster.hear(name, true, 12.0 + f64::from(half) / 2.0 + within);
            if place % 500 == 0 {
                most = most.max(cluster.extra());
            }
        }
    }
    assert!(most <= ceiling, "{most}");
    assert!(most > ceiling / 2, "what may be lent is lent: {most}");
}

#[test]
fn one_node_alone_in_trouble_is_lent_what_it_needs_and_gives_it_back() {
    let mut cluster = Cluster::new(10_000, 10);
    assert_eq!(cluster.duties["node-7"].extra_in_1000_s, 25);
    cluster.hear("node-7", true, 13.0);
    assert_eq!(cluster.duties["node-7"].extra_in_1000_s, 5_000);
    // Trouble that lasts is no reason to go on.
    for second in 14..60 {
        cluster.quiet(second..second + 1);
        cluster.hear("node-7", true, f64::from(second));
    }
    assert_eq!(cluster.duties["node-7"].extra_in_1000_s, 25);
    let nodes = cluster.roster.0.lock().unwrap();
    assert_eq!(nodes.lent, 0);
}
