//! Do the profiles send and decide what the real C libraries send and decide?
//!
//! For each row the real getaddrinfo and the emulation meet the same scripted server, each in a network of its
//! own, and the two recordings are compared. Nothing is compared with stored values. Needs root, gcc (for the
//! machine's glibc) and musl-gcc; without them the test fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod scripted;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use evidence::{LookupId, NameKind, ServerRole};
use hickory_proto::rr::RecordType;
use netns::Namespace;
use prober::{Call, Profile, lookup};
use scripted::{Reply, Script, Seen, Server, Transports, enter_own_network, run};

/// One behaviour of the name server.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    /// None: nobody listens.
    script: Option<Script>,
    /// Name servers in resolv.conf.
    servers: &'static [SocketAddr],
    /// Whether a burst may be seen in any order: with resends at once, or two servers that write down what they
    /// see, the scheduler decides who is first.
    any_order_in_bursts: bool,
}

/// What one client did and got.
#[derive(Debug, Clone)]
struct Recording {
    seen: Vec<Seen>,
    outcome: String,
    addresses: usize,
    took: Duration,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Library {
    Glibc,
    Musl,
}

const fn row(name: &'static str, script: Script) -> Row {
    Row { name, script: Some(script), servers: &ONE_SERVER, any_order_in_bursts: false }
}

const ROWS: [Row; 23] = [
    row("all answered", |_, _| Reply::Data),
    row("AAAA lost once", |t, n| if t == RecordType::AAAA && n == 0 { Reply::Lost } else { Reply::Data }),
    row("A lost once", |t, n| if t == RecordType::A && n == 0 { Reply::Lost } else { Reply::Data }),
    row("both lost", |_, _| Reply::Lost),
    row("both lost once", |_, n| if n == 0 { Reply::Lost } else { Reply::Data }),
    row("AAAA always lost", |t, _| if t == RecordType::AAAA { Reply::Lost } else { Reply::Data }),
    row("A always lost", |t, _| if t == RecordType::A { Reply::Lost } else { Reply::Data }),
    row("AAAA SERVFAIL", |t, _| if t == RecordType::AAAA { Reply::Code(2) } else { Reply::Data }),
    row("AAAA NXDOMAIN", |t, _| if t == RecordType::AAAA { Reply::Code(3) } else { Reply::Data }),
    row("AAAA REFUSED", |t, _| if t == RecordType::AAAA { Reply::Code(5) } else { Reply::Data }),
    row("AAAA cut", |t, _| if t == RecordType::AAAA { Reply::Cut } else { Reply::Data }),
    row("A NXDOMAIN", |t, _| if t == RecordType::A { Reply::Code(3) } else { Reply::Data }),
    row("A SERVFAIL, AAAA NODATA", |t, _| if t == RecordType::A { Reply::Code(2) } else { Reply::NoData }),
    row("both NODATA", |_, _| Reply::NoData),
    row("both REFUSED", |_, _| Reply::Code(5)),
    row("both FORMERR", |_, _| Reply::Code(1)),
    row("both lame", |_, _| Reply::Lame),
    row("spoofed before the answer", |_, _| Reply::SpoofedThenData),
    // glibc goes to TCP, musl 1.2.3 takes what there is.
    row("truncated", |_, _| Reply::Truncated),
    Row { any_order_in_bursts: true, ..row("both SERVFAIL", |_, _| Reply::Code(2)) },
    Row { script: None, ..row("nobody listens", |_, _| Reply::Lost) },
    Row {
        servers: &TWO_SERVERS,
        any_order_in_bursts: true,
        ..row("two servers, both lost", |_, _| Reply::Lost)
    },
    Row {
        servers: &TWO_SERVERS,
        any_order_in_bursts: true,
        ..row("two servers, AAAA lost once", |t, n| {
            if t == RecordType::AAAA && n == 0 { Reply::Lost } else { Reply::Data }
        })
    },
];

#[test]
fn the_profiles_do_what_the_real_libraries_do() {
    let programs = Programs::compile();
    let all: Vec<_> = ROWS.iter().flat_map(|row| [(row, Library::Glibc), (row, Library::Musl)]).collect();
    // A busy machine may hold one client up for longer than the tolerance. What really differs differs again.
    let doubtful: Vec<_> = differing(&all, &programs).into_iter().map(|(pair, _)| pair).collect();
    let failures: Vec<_> = differing(&doubtful, &programs).into_iter().map(|(_, why)| why).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Records these rows, all at the same time, and gives those where library and emulation differ.
fn differing<'a>(pairs: &[(&'a Row, Library)], programs: &Programs) -> Vec<((&'a Row, Library), String)> {
    thread::scope(|scope| {
        let start = |&(row, library): &(&'a Row, Library)| {
            // Not all in one instant: starting a process takes longer than most lookups.
            thread::sleep(Duration::from_millis(20));
            let program = programs.of(library);
            let real = scope.spawn(move || record(row, || real_library(program)));
            let ours = scope.spawn(move || record(row, || emulation(library, row.servers)));
            (row, library, real, ours)
        };
        let running: Vec<_> = pairs.iter().map(start).collect();
        let compared = running.into_iter().map(|(row, library, real, ours)| {
            let (real, ours) = (real.join().unwrap(), ours.join().unwrap());
            let verdict = compare(row, &real, &ours);
            let (packets, took) = (real.seen.len(), real.took.as_secs_f64());
            let row_name = row.name;
            println!(
                "{library:?} {row_name:27} {:9} {packets:2} packets, {took:6.3} s: {verdict:?}",
                real.outcome
            );
            let story = format!("real {}\nours {}", story(&real), story(&ours));
            verdict.map_err(|why| ((row, library), format!("{library:?}, {row_name}: {why}\n{story}")))
        });
        compared.filter_map(Result::err).collect()
    })
}

#[test]
fn the_comparison_tells_the_two_families_apart() {
    let both_lost = ROWS.iter().find(|row| row.name == "both lost").unwrap();
    let (musl, glibc) = thread::scope(|scope| {
        let musl = scope.spawn(|| record(both_lost, || emulation(Library::Musl, both_lost.servers)));
        let glibc = scope.spawn(|| record(both_lost, || emulation(Library::Glibc, both_lost.servers)));
        (musl.join().unwrap(), glibc.join().unwrap())
    });
    assert!(compare(both_lost, &musl, &glibc).is_err());
    let mut other_port = glibc.clone();
    other_port.seen[2].port ^= 1;
    let mut other_id = glibc.clone();
    other_id.seen[3].id ^= 1;
    let mut other_order = glibc.clone();
    other_order.seen.swap(0, 1);
    for deviating in [other_port, other_id, other_order] {
        assert!(compare(both_lost, &glibc, &deviating).is_err());
    }
}

struct Programs {
    _directory: tempfile::TempDir,
    glibc: PathBuf,
    musl: PathBuf,
}

impl Programs {
    fn compile() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/getaddrinfo.c");
        let compile = |compiler, name, more: &[&str]| {
            let target = directory.path().join(name);
            let arguments =
                [&["-O1", "-Wall", "-o", target.to_str().unwrap(), source.to_str().unwrap()], more];
            run(compiler, &arguments.concat());
            target
        };
        let glibc = compile("gcc", "getaddrinfo-glibc", &[]);
        let musl = compile("musl-gcc", "getaddrinfo-musl", &["-static"]);
        Self { _directory: directory, glibc, musl }
    }

    fn of(&self, library: Library) -> &Path {
        match library {
            Library::Glibc => &self.glibc,
            Library::Musl => &self.musl,
        }
    }
}

/// Puts one client before the scripted server, in a network of their own.
fn record(row: &Row, client: impl FnOnce() -> (String, usize)) -> Recording {
    enter_own_network(row.servers);
    let server = row.script.map(|script| Server::start(row.servers, Transports::UdpAndTcp, script));
    let start = Instant::now();
    let (outcome, addresses) = client();
    let took = start.elapsed();
    Recording { seen: server.map(|s| s.seen()).unwrap_or_default(), outcome, addresses, took }
}

fn real_library(program: &Path) -> (String, usize) {
    let printed = run(program.to_str().unwrap(), &[NAME]);
    let (outcome, addresses) = printed.trim().rsplit_once(' ').unwrap();
    (outcome.to_owned(), addresses.parse().unwrap())
}

fn emulation(library: Library, servers: &[SocketAddr]) -> (String, usize) {
    let profile = match library {
        Library::Glibc => Profile::GLIBC,
        Library::Musl => Profile::MUSL,
    };
    let call = Call {
        id: LookupId(1),
        vantage: "test",
        servers,
        role: ServerRole::Service,
        name: NAME,
        name_kind: NameKind::Cluster,
        answer_within: Duration::from_secs(1),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let here = Namespace::current().unwrap();
    let finding = runtime.block_on(lookup(&profile, &here, &call, |_| ())).unwrap();
    (finding.lookup.outcome.as_str().to_owned(), finding.addresses.len())
}

/// Whether two clients did the same: packets by count, order, transport, reuse of ports and IDs, and time;
/// then what the application got.
fn compare(row: &Row, real: &Recording, ours: &Recording) -> Result<(), String> {
    let same = |what: &str, real: String, ours: String| {
        if real == ours { Ok(()) } else { Err(format!("{what}: real {real}, ours {ours}")) }
    };
    same("packets", real.seen.len().to_string(), ours.seen.len().to_string())?;
    same("outcome", real.outcome.clone(), ours.outcome.clone())?;
    same("addresses", real.addresses.to_string(), ours.addresses.to_string())?;
    let shape = |recording: &Recording| format!("{:?}", shapes(&recording.seen, row.any_order_in_bursts));
    same("order, ports, IDs", shape(real), shape(ours))?;
    let times = offsets(&real.seen).into_iter().zip(offsets(&ours.seen)).chain([(real.took, ours.took)]);
    for (number, (real, ours)) in times.enumerate() {
        let tolerance = (real / 10).max(Duration::from_millis(150));
        if real.abs_diff(ours) > tolerance {
            return Err(format!("time {number}: real {real:?}, ours {ours:?}"));
        }
    }
    Ok(())
}

/// A packet with its port and ID as "the first, second ... that was ever seen".
#[derive(Debug)]
#[allow(dead_code, reason = "compared by its Debug form")]
struct Shape {
    burst: usize,
    server: SocketAddr,
    qtype: RecordType,
    tcp: bool,
    port: usize,
    id: usize,
}

fn shapes(seen: &[Seen], any_order_in_bursts: bool) -> Vec<Shape> {
    let mut burst = 0;
    let mut last = None;
    let mut packets = Vec::new();
    for packet in seen {
        if last.is_some_and(|last| packet.at - last > Duration::from_millis(500)) {
            burst += 1;
        }
        last = Some(packet.at);
        packets.push((burst, packet));
    }
    if any_order_in_bursts {
        packets.sort_by_key(|(burst, packet)| (*burst, packet.server, packet.qtype));
    }
    let of = |(burst, packet): &(usize, &Seen)| Shape {
        burst: *burst,
        server: packet.server,
        qtype: packet.qtype,
        tcp: packet.tcp,
        port: packets.iter().position(|(_, p)| (p.port, p.tcp) == (packet.port, packet.tcp)).unwrap(),
        id: packets.iter().position(|(_, p)| p.id == packet.id).unwrap(),
    };
    packets.iter().map(of).collect()
}

fn offsets(seen: &[Seen]) -> Vec<Duration> {
    seen.iter().map(|packet| packet.at - seen[0].at).collect()
}

fn story(recording: &Recording) -> String {
    let packets = recording.seen.iter().zip(offsets(&recording.seen)).map(|(packet, at)| {
        let transport = if packet.tcp { "tcp" } else { "udp" };
        format!(
            "\n  {:9.3} ms {transport} {:4} port {} id {}",
            at.as_secs_f64() * 1e3,
            packet.qtype,
            packet.port,
            packet.id
        )
    });
    let end =
        format!("\n  {} ({} addresses) after {:?}", recording.outcome, recording.addresses, recording.took);
    packets.chain([end]).collect()
}

/// Absolute, so that no search list comes in.
const NAME: &str = "row.example.";
const ONE_SERVER: [SocketAddr; 1] = [loopback(1)];
const TWO_SERVERS: [SocketAddr; 2] = [loopback(1), loopback(2)];

const fn loopback(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 53)
}
