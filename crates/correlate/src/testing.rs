//! Evidence for unit tests: one Service, two servers, one pod, two nodes.

use std::time::Duration;

use evidence::{
    BootTime, Counters, DnsQuestion, DnsService, DropClass, Endpoint, Inventory, KernelDrop, Lookup,
    LookupId, Mapping, NameKind, Outcome, Place, Pod, Protocol, QueryType, ServerRole, Tuple, WallTime,
};

use crate::symptom::{Failure, Kind, Query, Symptom, TroubledLookup};
use crate::view::{Ended, View};

pub(crate) const NOW: WallTime = WallTime(1_700_000_000_000_000_000);

pub(crate) fn inventory(serving: &[&str]) -> Inventory {
    let endpoint = |address: &&str| Endpoint {
        name: address.to_string(),
        address: address.parse().unwrap(),
        node: None,
        serving: true,
        leaving: false,
    };
    Inventory {
        service: DnsService {
            name: "kube-dns".into(),
            addresses: vec!["10.96.0.10:53".parse().unwrap()],
            is_virtual: true,
        },
        endpoints: serving.iter().map(endpoint).collect(),
        pods: vec![Pod {
            name: "default/app".into(),
            addresses: vec!["10.244.1.7".parse().unwrap()],
            node: Some("node-a".into()),
            ..Pod::default()
        }],
        ..Inventory::default()
    }
}

pub(crate) fn inventory_view() -> View {
    let mut view = View::default();
    view.now = NOW;
    view.learn_inventory(NOW.minus(Duration::from_secs(60)), inventory(&["10.244.1.2:53", "10.244.2.3:53"]));
    view
}

pub(crate) fn tuple() -> Tuple {
    Tuple { source: "10.244.1.7:41923".parse().unwrap(), destination: "10.96.0.10:53".parse().unwrap() }
}

pub(crate) fn kernel_drop(node: &str, class: DropClass) -> KernelDrop {
    KernelDrop {
        at: BootTime(0),
        place: Place::Node(node.into()),
        class,
        protocol: Protocol::Udp,
        packet: tuple(),
        original: Some(tuple()),
        reply: None,
        interface: None,
        mark: 0,
        question: Some(DnsQuestion {
            id: 7,
            name: "kubernetes.default.svc.cluster.local.".into(),
            qtype: Some(QueryType::A),
        }),
    }
}

pub(crate) fn drop_symptom(node: &str, class: DropClass) -> Symptom {
    Symptom {
        at: NOW,
        known: NOW,
        node: node.into(),
        kind: Kind::Drop(kernel_drop(node, class)),
        counted: false,
    }
}

pub(crate) fn lookup_symptom(failure: Failure) -> Symptom {
    let lookup = TroubledLookup {
        id: LookupId(1),
        vantage: "pod-a".into(),
        profile: "musl".into(),
        server: "10.96.0.10:53".parse().unwrap(),
        role: ServerRole::Service,
        name_kind: NameKind::Cluster,
        failure,
        queries: vec![Query {
            source: "10.244.1.7:41923".parse().unwrap(),
            id: 7,
            name: "kubernetes.default.svc.cluster.local.".into(),
            sent: NOW,
        }],
    };
    Symptom { at: NOW, known: NOW, node: "node-a".into(), kind: Kind::Lookup(lookup), counted: false }
}

pub(crate) fn direct_symptom(id: u64) -> Symptom {
    let mut symptom = lookup_symptom(Failure::Silent);
    if let Kind::Lookup(lookup) = &mut symptom.kind {
        lookup.id = LookupId(id);
        lookup.role = ServerRole::Direct;
        lookup.server = "10.244.1.2:53".parse().unwrap();
    }
    symptom
}

pub(crate) fn answered(at: WallTime, name_kind: NameKind) -> Ended {
    Ended {
        node: "node-a".into(),
        started: at,
        ended: at.plus(Duration::from_millis(1)),
        lookup: Lookup {
            id: LookupId(99),
            vantage: "pod-a".into(),
            profile: "musl".into(),
            server: "10.244.1.2:53".parse().unwrap(),
            role: ServerRole::Direct,
            name: "n.".into(),
            name_kind,
            started: BootTime(0),
            ended: BootTime(1_000_000),
            outcome: Outcome::Addresses,
            packets: 2,
        },
    }
}

pub(crate) fn mapping_symptom(at: WallTime) -> Symptom {
    let mapping = Mapping {
        node: "node-a".into(),
        at: BootTime(0),
        protocol: Protocol::Udp,
        original: tuple(),
        backend: "10.244.1.2:53".parse().unwrap(),
        id: 5,
        replied: true,
        expires_secs: 120,
        renewed: Some(BootTime(0)),
    };
    Symptom { at, known: at, node: "node-a".into(), kind: Kind::Mapping(mapping), counted: false }
}

pub(crate) fn counters(node: &str, entries: u64, max: u64) -> Counters {
    Counters { node: node.into(), entries, max, ..Counters::default() }
}
