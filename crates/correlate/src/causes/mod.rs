//! The causes, one file each. A cause is a value: words for people, what it reads, and three pure functions.
//!
//! Ids are for ever: they are alert labels, file names and URLs. To add a cause, write its file and name it
//! in [`all`].

mod conntrack_full;
mod insert_race;
mod no_endpoints;
mod policy_drop;
mod server_silent;
mod stale_mapping;
mod unexplained;
mod upstream_failing;

use evidence::{DropClass, Observer, WallTime};

use crate::incident::{Confidence, Scope};
use crate::symptom::{Kind, Symptom};
use crate::view::{Baseline, View, time_of_day};

/// One cause: what a user sees, what proves it, what speaks against it, what mends it.
pub struct Cause {
    /// The id, for ever.
    pub id: &'static str,
    /// A few words.
    pub title: &'static str,
    /// What users of the cluster see.
    pub seen: &'static str,
    /// What proves it.
    pub proves: &'static str,
    /// What speaks against it.
    pub against: &'static str,
    /// What mends it, in general.
    pub mend: &'static str,
    /// Whose evidence it needs. It is ruled out only where all of these looked and lost nothing.
    pub reads: &'static [Observer],
    /// The class of kernel drops that is its doing alone: their exact number comes from the kernel's totals.
    pub(crate) drops: Option<DropClass>,
    /// Whether a lost packet of it costs just the wait for the resend.
    pub(crate) waits_for_resend: bool,
    /// Whether this symptom is its doing.
    pub(crate) judge: fn(&Symptom, &View) -> Option<Judgement>,
    /// Whether the symptom on its own would make one think of it.
    pub(crate) looks_like: fn(&Symptom) -> bool,
    /// What was seen instead, where the observers looked; nothing if the signs are there after all.
    pub(crate) absent: fn(&View) -> Option<String>,
    /// The incident's title, further proof and mend, with figures.
    pub(crate) tell: fn(&Case, &View) -> Telling,
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cause({})", self.id)
    }
}

/// A cause's claim to a symptom.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judgement {
    pub confidence: Confidence,
    /// What the symptom says of the scope; nothing if it only fits an incident that others scope.
    pub scope: Option<Scope>,
    /// The symptom as a line of proof.
    pub line: String,
}

/// What a cause is told of its incident to write the verdict.
pub(crate) struct Case<'a> {
    pub scope: &'a Scope,
    pub symptoms: &'a [Symptom],
    pub base: &'a Baseline,
    pub since: WallTime,
    pub dropped: u64,
}

/// What a cause says of its incident.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    pub title: String,
    pub proof: Vec<String>,
    pub mend: String,
}

/// The id of what fits no cause.
pub(crate) const UNEXPLAINED: &str = "unexplained";

/// All causes, in the order in which they are asked. The first that is certain takes a symptom, else the first
/// that is likely.
pub fn all() -> &'static [&'static Cause] {
    static ALL: [&Cause; 8] = [
        &insert_race::CAUSE,
        &stale_mapping::CAUSE,
        &conntrack_full::CAUSE,
        &no_endpoints::CAUSE,
        &policy_drop::CAUSE,
        &server_silent::CAUSE,
        &upstream_failing::CAUSE,
        &unexplained::CAUSE,
    ];
    &ALL
}

/// The cause of that id.
pub fn by_id(id: &str) -> Option<&'static Cause> {
    all().iter().copied().find(|cause| cause.id == id)
}

/// The best claim to a symptom: a certain one, else a likely one.
pub(crate) fn judge(symptom: &Symptom, view: &View) -> Option<(&'static Cause, Judgement)> {
    let claims: Vec<_> =
        all().iter().filter_map(|cause| Some((*cause, (cause.judge)(symptom, view)?))).collect();
    let best = claims.iter().map(|(_, judgement)| judgement.confidence).max()?;
    claims.into_iter().find(|(_, judgement)| judgement.confidence == best)
}

/// The class of the drop that a symptom is, or that killed one of its packets.
fn drop_behind<'a>(symptom: &'a Symptom, view: &'a View) -> Option<&'a evidence::KernelDrop> {
    match &symptom.kind {
        Kind::Drop(dropped) => Some(dropped),
        Kind::Lookup(lookup) => view.drop_of(&lookup.queries),
        Kind::Mapping(_) => None,
    }
}

/// Whether a symptom is, or was killed by, a drop of that class.
fn dropped_as<'a>(
    symptom: &'a Symptom,
    view: &'a View,
    class: DropClass,
) -> Option<&'a evidence::KernelDrop> {
    drop_behind(symptom, view).filter(|dropped| dropped.class == class)
}

/// "14:03:09.213  AAAA api.example.com.  10.244.1.7:41923 → 10.96.0.10:53/udp".
pub(crate) fn drop_line(at: WallTime, what: &str, dropped: &evidence::KernelDrop) -> String {
    let question = dropped.question.as_ref().map_or(String::new(), |q| {
        format!("  {} {}", q.qtype.map_or("query", evidence::QueryType::as_str), q.name)
    });
    let tuple = dropped.original.unwrap_or(dropped.packet);
    format!("{}  {what}  {tuple}/{}{question}", time_of_day(at), dropped.protocol.as_str())
}

/// "14:03:09.213  musl lookup from POD to SERVER unanswered for 1 s".
pub(crate) fn lookup_line(symptom: &Symptom, view: &View) -> String {
    let Some(lookup) = symptom.lookup() else { return String::new() };
    let asked = lookup.queries.first().map_or("?", |query| query.name.as_str());
    format!(
        "{}  {} lookup of {asked} from {} to {} was {}",
        time_of_day(symptom.at),
        lookup.profile,
        lookup.vantage,
        view.server_name(&lookup.server),
        lookup.failure.words()
    )
}

/// Sum of the latest counters over all nodes, for "table full (812 of 262,144)".
fn fullest_table(view: &View) -> Option<(String, u64, u64)> {
    view.counters
        .iter()
        .filter_map(|(node, readings)| readings.back().map(|(_, c)| (node.clone(), c.entries, c.max)))
        .filter(|(_, _, max)| *max > 0)
        .max_by(|(_, a, a_max), (_, b, b_max)| (a * b_max).cmp(&(b * a_max)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_every_cause_says_what_mends_it() {
        let ids: BTreeSet<_> = all().iter().map(|cause| cause.id).collect();
        assert_eq!(ids.len(), all().len());
        for cause in all() {
            for text in [cause.title, cause.seen, cause.proves, cause.against, cause.mend] {
                assert!(!text.is_empty(), "{} has an empty text", cause.id);
            }
            assert!(by_id(cause.id).is_some());
        }
    }
}
