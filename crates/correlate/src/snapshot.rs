//! What must outlive a process, so that its open incidents go on in the next one?
//!
//! Either the process itself wrote it down ([`crate::Correlator::snapshot`]), or somebody else remembers that there are
//! incidents, an Alertmanager for one ([`Snapshot::told`]). What only serves to grow graver is left out: it fills anew.

use std::collections::{BTreeMap, BTreeSet};

use evidence::{Coverage, WallTime};
use serde::{Deserialize, Serialize};

use crate::causes;
use crate::incident::Incident;
use crate::open::Open;
use crate::view::{Baseline, SavedBaseline};

/// The open incidents, and who was blind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Incidents so far: part of the next one's id.
    pub(crate) opened: u64,
    pub(crate) incidents: Vec<Saved>,
    pub(crate) blind: Vec<SavedBlind>,
}

/// An open incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    pub incident: Incident,
    last_symptom: WallTime,
    /// None: not known; counted from the first reading.
    base: Option<SavedBaseline>,
    first_lines: Vec<String>,
    last_line: Option<String>,
    explained: BTreeMap<String, u64>,
    clients: BTreeSet<String>,
    nodes: BTreeSet<String>,
    sockets: BTreeSet<(String, u32)>,
    dropped_records: u64,
    folded: u64,
    retracted: u64,
}

/// An observer that used to look, and its last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedBlind {
    pub coverage: Coverage,
    pub said: WallTime,
}

impl Snapshot {
    /// Of incidents of which no more is known than what was told. Where several are of one cause, the one that began
    /// first gives its beginning, and the gravest the rest.
    pub fn told(incidents: Vec<Incident>) -> Self {
        let mut by_cause: BTreeMap<String, Incident> = BTreeMap::new();
        for incident in incidents {
            match by_cause.get_mut(&incident.cause) {
                None => drop(by_cause.insert(incident.cause.clone(), incident)),
                Some(known) => {
                    let since = known.since.min(incident.since);
                    if incident.severity > known.severity {
                        *known = incident;
                    }
                    known.since = since;
                }
            }
        }
        let incidents = by_cause.into_values().map(Saved::told).collect();
        Self { incidents, ..Self::default() }
    }

    /// The incidents in it.
    pub fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.iter().map(|saved| &saved.incident)
    }
}

impl Saved {
    fn told(incident: Incident) -> Self {
        Self {
            last_symptom: incident.since,
            base: None,
            first_lines: incident.proof.iter().take(1).cloned().collect(),
            last_line: None,
            explained: BTreeMap::new(),
            clients: incident.suffers.clients.iter().cloned().collect(),
            nodes: incident.suffers.nodes.iter().cloned().collect(),
            sockets: BTreeSet::new(),
            dropped_records: incident.suffers.dropped_packets,
            folded: 1,
            retracted: 0,
            incident,
        }
    }

    pub fn of(open: &Open) -> Self {
        let nodes = open
            .incident
            .scope
            .node
            .as_ref()
            .map_or_else(|| open.nodes.clone(), |node| [node.clone()].into());
        Self {
            incident: open.incident.clone(),
            last_symptom: open.last_symptom,
            base: (!open.base.is_late).then(|| open.base.save(&nodes)),
            first_lines: open.first_lines.clone(),
            last_line: open.last_line.clone(),
            explained: open.explained.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect(),
            clients: open.clients.clone(),
            nodes: open.nodes.clone(),
            sockets: open.sockets.clone(),
            dropped_records: open.dropped_records,
            folded: open.folded,
            retracted: open.retracted,
        }
    }

    /// None for a cause that this version does not know.
    pub fn open(self, now: WallTime) -> Option<Open> {
        let cause = causes::by_id(&self.incident.cause)?;
        let base = self.base.map_or_else(Baseline::late, Baseline::restore);
        let Incident { id, scope, since, .. } = self.incident.clone();
        let explained =
            self.explained.into_iter().filter_map(|(id, count)| Some((causes::by_id(&id)?.id, count)));
        Some(Open {
            incident: self.incident,
            last_symptom: self.last_symptom,
            first_lines: self.first_lines,
            last_line: self.last_line,
            explained: explained.collect(),
            clients: self.clients,
            nodes: self.nodes,
            sockets: self.sockets,
            dropped_records: self.dropped_records,
            folded: self.folded,
            retracted: self.retracted,
            restored: Some(now),
            ..Open::new(cause, id, scope, since, base)
        })
    }
}
