use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::encoding::WireType;
use prost::encoding::encode_key;

use super::*;
use crate::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9./ü-]{0,40}"
}

fn tuple() -> impl Strategy<Value = Tuple> {
    (address(), address()).prop_map(|(source, destination)| Tuple { source, destination })
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![name().prop_map(Place::Node), any::<u32>().prop_map(Place::Namespace)]
}

fn class() -> impl Strategy<Value = DropClass> {
    prop::sample::select(DropClass::ALL.to_vec())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Udp), Just(Protocol::Tcp)]
}

fn role() -> impl Strategy<Value = ServerRole> {
    prop_oneof![Just(ServerRole::Service), Just(ServerRole::Direct)]
}

fn name_kind() -> impl Strategy<Value = NameKind> {
    prop_oneof![Just(NameKind::Cluster), Just(NameKind::Forwarded)]
}

fn qtype() -> impl Strategy<Value = QueryType> {
    prop_oneof![Just(QueryType::A), Just(QueryType::Aaaa)]
}

fn attempt() -> impl Strategy<Value = Observation> {
    let result = prop_oneof![
        (any::<u8>(), any::<u64>()).prop_map(|(rcode, wait_ns)| AttemptResult::Answered { rcode, wait_ns }),
        any::<u64>().prop_map(|wait_ns| AttemptResult::Unanswered { wait_ns }),
        any::<i32>().prop_map(|errno| AttemptResult::Unreachable { errno }),
        any::<i32>().prop_map(|errno| AttemptResult::SendRefused { errno }),
    ];
    let who = (any::<u64>(), name(), name(), address(), role(), address());
    let what = (any::<u16>(), name(), name_kind(), qtype(), any::<u64>(), result);
    (who, what).prop_map(
        |((id, vantage, profile, server, role, source), (query_id, name, name_kind, qtype, sent, result))| {
            Observation::Attempt(Attempt {
                lookup: LookupId(id),
                vantage,
                profile,
                server,
                role,
                source,
                query_id,
                name,
                name_kind,
                qtype,
                sent: BootTime(sent),
                result,
            })
        },
    )
}

fn lookup() -> impl Strategy<Value = Observation> {
    let outcome = prop::sample::select(vec![
        Outcome::Addresses,
        Outcome::NoName,
        Outcome::NoData,
        Outcome::TryAgain,
        Outcome::Failed,
    ]);
    let who = (any::<u64>(), name(), name(), address(), role(), name());
    let what = (name_kind(), any::<u64>(), any::<u64>(), outcome, any::<u32>());
    (who, what).prop_map(
        |((id, vantage, profile, server, role, name), (name_kind, started, ended, outcome, packets))| {
            Observation::Lookup(Lookup {
                id: LookupId(id),
                vantage,
                profile,
                server,
                role,
                name,
                name_kind,
                started: BootTime(started),
                ended: BootTime(ended),
                outcome,
                packets,
            })
        },
    )
}

fn kernel_drop() -> impl Strategy<Value = Observation> {
    let question = (any::<u16>(), name(), option::of(qtype())).prop_map(|(id, name, qtype)| DnsQuestion {
        id,
        name,
        qtype,
    });
    let packet = (tuple(), option::of(tuple()), option::of(tuple()), option::of(name()), any::<u32>());
    (any::<u64>(), place(), class(), protocol(), packet, option::of(question)).prop_map(
        |(at, place, class, protocol, (packet, original, reply, interface, mark), question)| {
            Observation::KernelDrop(KernelDrop {
                at: BootTime(at),
                place,
                class,
                protocol,
                packet,
                original,
                reply,
                interface,
                mark,
                question,
            })
        },
    )
}

fn mapping() -> impl Strategy<Value = Observation> {
    let entry = (any::<u32>(), any::<bool>(), any::<u32>(), option::of(any::<u64>()));
    (name(), any::<u64>(), protocol(), tuple(), address(), entry).prop_map(
        |(node, at, protocol, original, backend, (id, replied, expires_secs, renewed))| {
            Observation::Mapping(Mapping {
                node,
                at: BootTime(at),
                protocol,
                original,
                backend,
                id,
                replied,
                expires_secs,
                renewed: renewed.map(BootTime),
            })
        },
    )
}

fn counters() -> impl Strategy<Value = Observation> {
    (name(), any::<[u64; 10]>()).prop_map(|(node, n)| {
        Observation::Counters(Counters {
            node,
            at: BootTime(n[0]),
            found: n[1],
            invalid: n[2],
            insert_failed: n[3],
            drop: n[4],
            early_drop: n[5],
            clash_resolve: n[6],
            chain_toolong: n[7],
            entries: n[8],
            max: n[9],
        })
    })
}

fn responses() -> impl Strategy<Value = BTreeMap<String, u64>> {
    btree_map("[A-Z]{0,8}", any::<u64>(), 0..4)
}

fn sample() -> impl Strategy<Value = Observation> {
    let upstream = (name(), responses(), any::<u64>()).prop_map(|(address, responses, failures)| Upstream {
        address,
        responses,
        healthcheck_failures: failures,
    });
    (address(), any::<[u64; 5]>(), responses(), vec(upstream, 0..3)).prop_map(
        |(server, n, responses, upstreams)| {
            Observation::ServerSample(ServerSample {
                server,
                at: BootTime(n[0]),
                started_unix_secs: n[1],
                requests: n[2],
                responses,
                upstreams,
                all_upstreams_broken: n[3],
                panics: n[4],
            })
        },
    )
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let endpoint = (name(), address(), option::of(name()), any::<bool>(), any::<bool>()).prop_map(
        |(name, address, node, serving, leaving)| Endpoint { name, address, node, serving, leaving },
    );
    let pod = (name(), vec(any::<IpAddr>(), 0..3), option::of(name()), option::of(name()))
        .prop_map(|(name, addresses, node, workload)| Pod { name, addresses, node, workload });
    let node = (name(), option::of(name())).prop_map(|(name, zone)| Node { name, zone });
    let service = (name(), vec(address(), 0..3), any::<bool>())
        .prop_map(|(name, addresses, is_virtual)| DnsService { name, addresses, is_virtual });
    (service, vec(endpoint, 0..4), vec(pod, 0..4), vec(node, 0..4))
        .prop_map(|(service, endpoints, pods, nodes)| Inventory { service, endpoints, pods, nodes })
}

fn observation() -> impl Strategy<Value = Observation> {
    let totals = (place(), class(), any::<u64>(), any::<u64>())
        .prop_map(|(place, class, all, dns)| Observation::DropTotals(DropTotals { place, class, all, dns }));
    prop_oneof![
        attempt(),
        lookup(),
        kernel_drop(),
        totals,
        mapping(),
        counters(),
        sample(),
        inventory().prop_map(|inventory| Observation::Inventory(inventory.into())),
    ]
}

fn coverage() -> impl Strategy<Value = Coverage> {
    let state = prop_oneof![
        any::<u64>().prop_map(|lost| CoverageState::Looked { lost }),
        name().prop_map(|missing| CoverageState::Denied { missing }),
        name().prop_map(|why| CoverageState::Unsupported { why }),
    ];
    (prop::sample::select(Observer::ALL.to_vec()), name(), state)
        .prop_map(|(observer, place, state)| Coverage { observer, place, state })
}

fn parcel() -> impl Strategy<Value = Parcel> {
    let role = prop::sample::select(vec![Role::Prober, Role::Node, Role::Servers, Role::Inventory]);
    let head = (any::<u64>(), "[a-z]{1,9}", role, name(), any::<[u64; 4]>(), any::<i64>());
    (head, vec(observation(), 0..6), vec(coverage(), 0..4)).prop_map(
        |((life, node, role, boot_id, n, wall), observations, coverage)| Parcel {
            life,
            batch: Batch {
                node,
                role,
                boot_id,
                sequence: n[0],
                clock: ClockReading { boot: BootTime(n[1]), wall: WallTime(wall) },
                from: BootTime(n[2]),
                to: BootTime(n[3]),
                observations,
                coverage,
            },
        },
    )
}

fn small() -> Parcel {
    Parcel {
        life: 7,
        batch: Batch {
            node: "node-a".into(),
            role: Role::Node,
            boot_id: "b".into(),
            sequence: 3,
            clock: ClockReading { boot: BootTime(1), wall: WallTime(2) },
            from: BootTime(0),
            to: BootTime(1),
            observations: vec![Observation::Counters(Counters {
                node: "node-a".into(),
                ..Default::default()
            })],
            coverage: vec![Coverage {
                observer: Observer::Drops,
                place: "node-a".into(),
                state: CoverageState::Looked { lost: 1 },
            }],
        },
    }
}

proptest! {
    #[test]
    fn a_parcel_survives_the_wire(parcel in parcel()) {
        let read = Parcel::from_bytes(&parcel.to_bytes()).unwrap();
        prop_assert_eq!(read, Read { value: parcel, version: VERSION, unknown: Unknown::default() });
    }

    #[test]
    fn an_answer_survives_the_wire(
        sequence: u64,
        outlook in option::of((any::<u64>(), 0..u64::from(u32::MAX), option::of(inventory()))),
        duty in option::of((vec(address(), 0..4), any::<u32>())),
    ) {
        let outlook = outlook.map(|(tag, age, inventory)| Outlook {
            tag,
            age: Duration::from_millis(age),
            inventory,
        });
        let duty = duty.map(|(direct, extra_in_1000_s)| Duty { direct, extra_in_1000_s });
        let answer = Answer { sequence, outlook, duty };
        prop_assert_eq!(Answer::from_bytes(&answer.to_bytes()).unwrap().value, answer);
    }

    #[test]
    fn damaged_bytes_are_an_error_or_other_values_and_never_a_panic(
        parcel in parcel(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut: prop::sample::Index,
    ) {
        let mut bytes = parcel.to_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        drop(Parcel::from_bytes(&bytes));
        drop(Answer::from_bytes(&bytes));
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..512)) {
        drop(Parcel::from_bytes(&bytes));
        drop(Answer::from_bytes(&bytes));
    }
}

/// As the next version would write it: a field, a kind of observation and values that this one does not know.
#[test]
fn what_a_newer_version_adds_is_left_out_and_counted() {
    let mut message = put::parcel(&small());
    message.version = NEWEST;
    message.observations.push(messages::Observation { kind: None });
    message.coverage.push(messages::Coverage {
        observer: 999,
        place: "node-a".into(),
        state: Some(messages::CoverageState::LookedLost(0)),
    });
    let mut bytes = message.encode_to_vec();
    encode_key(1000, WireType::LengthDelimited, &mut bytes);
    bytes.extend([3, b'n', b'e', b'w']);

    let read = Parcel::from_bytes(&bytes).unwrap();
    assert_eq!(read.version, NEWEST);
    assert_eq!(read.unknown, Unknown { bytes: 6, entries: 2 });
    let mut expected = small();
    // An observation that is not understood is a record that is missing.
    expected.batch.coverage[0].state = CoverageState::Looked { lost: 2 };
    assert_eq!(read.value, expected);
}

/// As it was before a correlator told probers what to do.
#[derive(Clone, PartialEq, Message)]
struct FormerAnswer {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(message, optional, tag = "3")]
    outlook: Option<messages::Outlook>,
}

#[test]
fn answers_of_one_version_older_or_newer_are_understood() {
    let outlook = messages::Outlook { tag: 7, age_ms: 3, inventory: None };
    let former = FormerAnswer { version: 1, sequence: 5, outlook: Some(outlook) };
    let read = Answer::from_bytes(&former.encode_to_vec()).unwrap();
    let outlook = Some(Outlook { tag: 7, age: Duration::from_millis(3), inventory: None });
    assert_eq!(read.value, Answer { sequence: 5, outlook: outlook.clone(), duty: None });
    assert_eq!(read.unknown, Unknown::default());

    // An agent that is older leaves out what it does not know.
    let duty = Some(Duty { direct: vec!["10.0.0.1:53".parse().unwrap()], extra_in_1000_s: 4500 });
    let own = Answer { sequence: 5, outlook, duty };
    assert_eq!(FormerAnswer::decode(own.to_bytes().as_slice()).unwrap(), former);

    // A correlator that is newer says more.
    let mut bytes = put::answer(&own).encode_to_vec();
    assert_eq!(bytes[..2], [0x08, 1], "the version comes first");
    bytes[1] = u8::try_from(NEWEST).unwrap();
    encode_key(1000, WireType::LengthDelimited, &mut bytes);
    bytes.extend([3, b'n', b'e', b'w']);
    let read = Answer::from_bytes(&bytes).unwrap();
    assert_eq!((read.value, read.version, read.unknown.bytes), (own, NEWEST, 6));
}

#[test]
fn a_duty_with_what_is_no_address_is_refused() {
    let duty = messages::Duty { direct: vec![vec![1; 5]], extra_in_1000_s: 0 };
    let answer = messages::Answer { version: VERSION, sequence: 1, outlook: None, duty: Some(duty) };
    let error = Answer::from_bytes(&answer.encode_to_vec()).unwrap_err().to_string();
    assert!(error.contains("direct is no address"), "{error}");
}

#[test]
fn a_newer_drop_class_is_a_drop_still() {
    let tuple = messages::Tuple { source: vec![10, 0, 0, 1, 0, 53], destination: vec![10, 0, 0, 2, 0, 53] };
    let dropped = messages::KernelDrop {
        place: Some(messages::Place { whose: Some(messages::Whose::Namespace(1)) }),
        class: 77,
        protocol: 17,
        packet: Some(tuple),
        ..Default::default()
    };
    let mut message = put::parcel(&small());
    message.observations = vec![messages::Observation { kind: Some(messages::Kind::KernelDrop(dropped)) }];
    let read = Parcel::from_bytes(&message.encode_to_vec()).unwrap();
    assert!(matches!(
        read.value.batch.observations.as_slice(),
        [Observation::KernelDrop(KernelDrop { class: DropClass::Unknown, .. })]
    ));
}

#[test]
fn what_no_version_writes_is_refused() {
    type Spoil = fn(&mut messages::Parcel);
    let rows: [(&str, Spoil, &str); 7] = [
        ("no version", |m| m.version = 0, "version 0"),
        ("a version too far", |m| m.version = NEWEST + 1, "version 3"),
        ("no node", |m| m.node.clear(), "node is empty"),
        ("no role", |m| m.role = 0, "role is none"),
        ("a long node", |m| m.node = "x".repeat(MAX_TEXT_BYTES + 1), "1025 node"),
        (
            "an address of five bytes",
            |m| {
                m.observations = vec![messages::Observation {
                    kind: Some(messages::Kind::ServerSample(messages::ServerSample {
                        server: vec![1; 5],
                        ..Default::default()
                    })),
                }];
            },
            "server is no address",
        ),
        (
            "entries without end",
            |m| m.observations = vec![messages::Observation::default(); MAX_ENTRIES + 1],
            "8194 entries",
        ),
    ];
    for (row, spoil, told) in rows {
        let mut message = put::parcel(&small());
        spoil(&mut message);
        let error = Parcel::from_bytes(&message.encode_to_vec()).unwrap_err().to_string();
        assert!(error.contains(told), "{row}: {error}");
    }
    let error = Parcel::from_bytes(&vec![0; MAX_BYTES + 1]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn a_long_text_is_cut_by_its_sender_at_a_whole_character() {
    let mut parcel = small();
    parcel.batch.coverage[0].state = CoverageState::Denied { missing: "ü".repeat(MAX_TEXT_BYTES) };
    let read = Parcel::from_bytes(&parcel.to_bytes()).unwrap();
    let expected = CoverageState::Denied { missing: "ü".repeat(MAX_TEXT_BYTES / 2) };
    assert_eq!(read.value.batch.coverage[0].state, expected);
}
