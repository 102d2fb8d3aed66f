//! An incident while it is open: what it has counted, and how it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use evidence::{Observer, ServerRole, WallTime};

use crate::causes::{self, Case, Cause, Judgement};
use crate::incident::{Confidence, Explained, Incident, NotSeen, RuledOut, Scope, Severity, Suffers};
use crate::symptom::{Kind, Symptom};
use crate::view::{Baseline, View};

/// An open incident.
#[derive(Debug)]
pub(crate) struct Open {
    pub cause: &'static Cause,
    pub incident: Incident,
    pub base: Baseline,
    pub samples: VecDeque<Symptom>,
    pub first_lines: Vec<String>,
    pub last_line: Option<String>,
    pub last_symptom: WallTime,
    pub explained: BTreeMap<&'static str, u64>,
    /// All that suffer, capped.
    pub clients: BTreeSet<String>,
    pub nodes: BTreeSet<String>,
    pub sockets: BTreeSet<(String, u32)>,
    pub dropped_records: u64,
    /// Symptoms taken in, and those that have found another cause since.
    pub folded: u64,
    pub retracted: u64,
    /// Ends of lookups without an answer, of the last 30 s.
    pub failed: VecDeque<WallTime>,
    /// Troubled lookups by the Service's address, by node: how many, since when.
    pub by_node: BTreeMap<String, (u64, WallTime)>,
    pub refreshed: WallTime,
    /// When it was taken over from an earlier process, until this one has seen a symptom of it.
    pub restored: Option<WallTime>,
}

impl Open {
    pub fn new(cause: &'static Cause, id: String, scope: Scope, since: WallTime, base: Baseline) -> Self {
        let incident = Incident {
            id,
            cause: cause.id.into(),
            title: cause.title.into(),
            confidence: Confidence::Unexplained,
            severity: Severity::Warning,
            scope,
            since,
            until: None,
            suffers: Suffers::default(),
            proof: Vec::new(),
            ruled_out: Vec::new(),
            explained: Vec::new(),
            not_seen: Vec::new(),
            mend: cause.mend.into(),
            closed_into: None,
        };
        Self {
            cause,
            incident,
            base,
            samples: VecDeque::new(),
            first_lines: Vec::new(),
            last_line: None,
            last_symptom: since,
            explained: BTreeMap::new(),
            clients: BTreeSet::new(),
            nodes: BTreeSet::new(),
            sockets: BTreeSet::new(),
            dropped_records: 0,
            folded: 0,
            retracted: 0,
            failed: VecDeque::new(),
            by_node: BTreeMap::new(),
            refreshed: WallTime(0),
            restored: None,
        }
    }

    pub fn fold(
        &mut self,
        symptom: Symptom,
        judgement: &Judgement,
        fate: Option<(WallTime, bool)>,
        view: &View,
    ) {
        self.folded += 1;
        self.restored = None;
        self.count_node(judgement);
        self.incident.confidence = self.incident.confidence.max(judgement.confidence);
        self.last_symptom = self.last_symptom.max(symptom.at);
        match &symptom.kind {
            Kind::Lookup(lookup) => {
                self.incident.suffers.troubled_lookups += 1;
                if lookup.role == ServerRole::Service {
                    let (count, _) = self.by_node.entry(symptom.node.clone()).or_insert((0, symptom.at));
                    *count += 1;
                }
                if let Some((ended, answered)) = fate {
                    self.count_end(ended, answered, lookup.role);
                }
            }
            Kind::Drop(dropped) => {
                self.dropped_records += 1;
                self.count_client(view.client_name(view.client_of(dropped).ip()));
            }
            Kind::Mapping(mapping) => {
                if self.sockets.len() < MOST_SOCKETS
                    && self.sockets.insert((mapping.node.clone(), mapping.id))
                {
                    self.incident.suffers.mappings += 1;
                }
                self.count_client(view.client_name(mapping.original.source.ip()));
            }
        }
        for other in causes::all().iter().filter(|other| other.id != self.cause.id) {
            if (other.looks_like)(&symptom) {
                *self.explained.entry(other.id).or_default() += 1;
            }
        }
        if self.first_lines.len() < 2 {
            self.first_lines.push(judgement.line.clone());
        } else {
            self.last_line = Some(judgement.line.clone());
        }
        if self.samples.len() >= MOST_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(symptom);
    }

    pub fn count_end(&mut self, ended: WallTime, answered: bool, role: ServerRole) {
        if answered {
            self.incident.suffers.late_lookups += 1;
            return;
        }
        self.incident.suffers.failed_lookups += 1;
        // Applications ask the Service: a failed direct query harms nobody.
        if role != ServerRole::Service {
            return;
        }
        if self.failed.len() >= MOST_FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back(ended);
    }

    fn count_client(&mut self, client: String) {
        if self.clients.len() < MOST_CLIENTS {
            self.clients.insert(client);
        }
    }

    fn count_node(&mut self, judgement: &Judgement) {
        let node = judgement.scope.as_ref().and_then(|scope| scope.node.clone());
        if let Some(node) = node.filter(|_| self.nodes.len() < MOST_CLIENTS) {
            self.nodes.insert(node);
        }
    }

    pub fn refresh(&mut self, view: &View) {
        self.refreshed = view.now;
        self.base.complete(view);
        // What was told of it is all that is known of it yet.
        if self.restored.is_some() {
            return;
        }
        let exact = self
            .cause
            .drops
            .map_or(0, |class| view.total_rise(self.incident.scope.node.as_deref(), class, &self.base).1);
        let suffers = &mut self.incident.suffers;
        suffers.dropped_packets = self.dropped_records.max(exact);
        suffers.clients = self.clients.iter().take(NAMED).cloned().collect();
        suffers.more_clients = u64::try_from(self.clients.len().saturating_sub(NAMED)).unwrap_or_default();
        suffers.nodes = self.nodes.iter().take(NAMED).cloned().collect();
        suffers.summary = summary(suffers, self.cause.waits_for_resend);
        let case = Case {
            scope: &self.incident.scope,
            symptoms: self.samples.make_contiguous(),
            base: &self.base,
            since: self.incident.since,
            dropped: self.incident.suffers.dropped_packets,
        };
        let telling = (self.cause.tell)(&case, view);
        self.incident.title = telling.title;
        self.incident.mend = telling.mend;
        self.incident.proof =
            self.first_lines.iter().chain(&self.last_line).cloned().chain(telling.proof).collect();
        self.incident.explained = self
            .explained
            .iter()
            .map(|(cause, symptoms)| Explained {
                cause: (*cause).into(),
                symptoms: *symptoms,
                why: "each is joined to this incident's own evidence".into(),
            })
            .collect();
        let since = self.incident.since.minus(Duration::from_secs(2));
        self.incident.ruled_out = causes::all()
            .iter()
            .filter(|cause| cause.id != self.cause.id && !cause.reads.is_empty())
            .filter(|cause| cause.reads.iter().all(|observer| view.looked(*observer, since)))
            .filter_map(|cause| Some(RuledOut { cause: cause.id.into(), why: (cause.absent)(view)? }))
            .collect();
        self.incident.not_seen = Observer::ALL
            .into_iter()
            .flat_map(|observer| {
                let hides: Vec<String> = causes::all()
                    .iter()
                    .filter(|cause| cause.id != self.cause.id && cause.reads.contains(&observer))
                    .map(|cause| cause.id.to_owned())
                    .collect();
                // What hides no cause is no gap of this verdict.
                let gaps =
                    if hides.is_empty() { Vec::new() } else { view.sight.gaps(observer, since, view.now) };
                gaps.into_iter().map(move |(place, why)| NotSeen {
                    observer,
                    place,
                    why,
                    hides: hides.clone(),
                })
            })
            .take(MOST_GAPS)
            .collect();
    }
}

fn summary(suffers: &Suffers, waits_for_resend: bool) -> String {
    let mut parts = Vec::new();
    if suffers.dropped_packets > 0 {
        let wait =
            if waits_for_resend { ": a musl client waits 2.5 s for each, a glibc client 5 s" } else { "" };
        parts.push(format!("{} dropped{wait}", counted(suffers.dropped_packets, "DNS packet")));
    }
    if suffers.mappings > 0 {
        parts.push(format!(
            "{} in use, leading nowhere: no query is answered",
            counted(suffers.mappings, "client socket")
        ));
    }
    if suffers.troubled_lookups > 0 {
        let fates = match (suffers.failed_lookups, suffers.late_lookups) {
            (0, 0) => "still waiting".to_owned(),
            (failed, late) => format!("{failed} ended without an answer, {late} late"),
        };
        parts.push(format!("{} in trouble ({fates})", counted(suffers.troubled_lookups, "probe lookup")));
    }
    parts.join("; ")
}

fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

const MOST_SAMPLES: usize = 16;
const MOST_FAILED: usize = 4096;
const MOST_CLIENTS: usize = 4096;
const MOST_SOCKETS: usize = 4096;
/// Clients and nodes told by name.
const NAMED: usize = 8;
const MOST_GAPS: usize = 12;
