//! The one JSON that check, status and the API speak, and how people read it.

use std::collections::BTreeSet;

use correlate::{Incident, Severity};
use evidence::{Coverage, CoverageState, Observer, WallTime};
use serde::{Deserialize, Serialize};

use crate::probes::ProbeLoad;

/// Whether DNS works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Lookups were made and answered, and nothing speaks against it.
    Healthy,
    /// At least one incident that somebody suffers from.
    Unhealthy,
    /// Nobody could look.
    Unknown,
}

/// What one profile last got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileStatus {
    /// The profile, as "musl".
    pub name: String,
    /// Where from.
    pub vantage: String,
    /// What was asked.
    pub lookup: String,
    /// The outcome in the libc's words.
    pub outcome: String,
    /// How long the application waited, in milliseconds.
    pub wait_ms: f64,
}

/// What is worth knowing before something happens. It is no incident.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Note {
    /// Of what it speaks.
    pub about: String,
    /// What is so, and what comes of it.
    pub what: String,
    /// What mends it.
    pub mend: String,
}

/// The state of DNS at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// "nslookout/1".
    pub schema: String,
    /// The verdict.
    pub state: State,
    /// When it was made, RFC 3339.
    pub at: String,
    /// Since when its figures are counted, RFC 3339. None: whoever made it is older than this field.
    #[serde(default)]
    pub since: Option<String>,
    /// Open incidents, the gravest first.
    pub incidents: Vec<Incident>,
    /// Lookups since the start.
    pub lookups: LookupCount,
    /// The last lookup of each profile and vantage.
    pub profiles: Vec<ProfileStatus>,
    /// Who looked where, and how well.
    pub coverage: Vec<Coverage>,
    /// How much all probers ask, and may ask at most. None of a single look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<ProbeLoad>,
    /// Symptoms by cause since the start.
    pub symptoms: Vec<SymptomCount>,
    /// What is worth knowing before something happens.
    #[serde(default)]
    pub notes: Vec<Note>,
}

/// Lookups since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupCount {
    /// That have ended.
    pub made: usize,
    /// Of these, with an answer (addresses, or that there are none).
    pub answered: usize,
}

/// Symptoms of one cause since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SymptomCount {
    /// The cause's id.
    pub cause: String,
    /// "certain", "likely" or "unexplained".
    pub confidence: String,
    /// How many.
    pub count: u64,
}

/// The name and version of the JSON.
pub const SCHEMA: &str = "nslookout/1";

impl Status {
    /// The state that incidents, coverage and lookups make. Lookups of which none was answered are no health, and
    /// a prober that fell silent is none either.
    pub fn state_of(incidents: &[Incident], coverage: &[Coverage], lookups: LookupCount) -> State {
        if incidents.iter().any(|incident| incident.severity > Severity::Info) {
            return State::Unhealthy;
        }
        let mut probers = coverage.iter().filter(|line| line.observer == Observer::Prober).peekable();
        let looked = probers.peek().is_some()
            && probers.all(|line| matches!(line.state, CoverageState::Looked { .. }));
        if looked && lookups.answered > 0 { State::Healthy } else { State::Unknown }
    }

    /// The exit code that says the same: 0 healthy, 1 unhealthy, 2 could not look.
    pub fn exit_code(&self) -> u8 {
        match self.state {
            State::Healthy => 0,
            State::Unhealthy => 1,
            State::Unknown => 2,
        }
    }

    /// The verdict as someone reads it who was just woken.
    pub fn verdict(&self) -> String {
        let mut out = String::new();
        let LookupCount { made, answered } = self.lookups;
        let since = self
            .since
            .as_deref()
            .map_or_else(String::new, |since| format!(" since {}", day_and_clock(since)));
        match self.state {
            State::Healthy => {
                out.push_str(&format!("HEALTHY  {answered} of {made} lookups answered{since}\n"));
            }
            State::Unknown => {
                out.push_str(&format!("COULD NOT LOOK  {made} lookups made, {answered} answered{since}\n"));
            }
            State::Unhealthy => {}
        }
        for incident in &self.incidents {
            out.push_str(&verdict(incident));
        }
        if !self.profiles.is_empty() {
            out.push('\n');
            out.push_str(&self.profile_table());
        }
        if let Some(probes) = &self.probes {
            out.push_str(&format!("\n  probes     {}\n", probes.words()));
        }
        let gaps = self.gaps();
        if !gaps.is_empty() {
            out.push_str("\n  could not be looked at\n");
            for gap in gaps {
                out.push_str(&format!("    {gap}\n"));
            }
        }
        if !self.notes.is_empty() {
            out.push_str("\n  beware\n");
            for Note { about, what, mend } in &self.notes {
                out.push_str(&format!("    {about}: {what}\n      → {mend}\n"));
            }
        }
        out
    }

    fn profile_table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["  profile", "from", "lookup", "outcome", "waited"]);
        let mut told = BTreeSet::new();
        for profile in &self.profiles {
            // A plain name server is asked as resolv.conf names it and directly: that is the same lookup.
            if !told.insert((&profile.name, &profile.vantage, &profile.lookup)) {
                continue;
            }
            table.add_row([
                format!("  {}", profile.name),
                profile.vantage.clone(),
                profile.lookup.clone(),
                profile.outcome.clone(),
                wait_words(profile.wait_ms),
            ]);
        }
        format!("{table}\n")
    }

    /// A verdict names its own gaps.
    fn is_told(&self, coverage: &Coverage) -> bool {
        let mut gaps = self.incidents.iter().flat_map(|incident| &incident.not_seen);
        gaps.any(|gap| (gap.observer, &gap.place) == (coverage.observer, &coverage.place))
    }

    /// What could not be looked at, with the causes that it hides.
    fn gaps(&self) -> Vec<String> {
        self.coverage
            .iter()
            .filter(|coverage| !self.is_told(coverage))
            .filter_map(|coverage| {
                let why = match &coverage.state {
                    CoverageState::Looked { .. } => return None,
                    CoverageState::Denied { missing } => missing,
                    CoverageState::Unsupported { why } => why,
                };
                let hidden: Vec<&str> = correlate::causes()
                    .iter()
                    .filter(|cause| cause.reads.contains(&coverage.observer))
                    .map(|cause| cause.id)
                    .collect();
                let hidden =
                    if hidden.is_empty() { String::new() } else { format!("; hides {}", hidden.join(", ")) };
                Some(format!("{} on {}: {why}{hidden}", coverage.observer.as_str(), coverage.place))
            })
            .collect()
    }
}

/// One incident, as DESIGN and people want it: cause, who suffers, proof, ruled out, not seen, mend.
pub fn verdict(incident: &Incident) -> String {
    let mut out = format!(
        "UNHEALTHY  since {}  {}  [{}]\n\n",
        clock(incident.since),
        incident.place(),
        incident.severity.as_str()
    );
    let mut row = |label: &str, lines: &[String]| {
        for (i, line) in lines.iter().enumerate() {
            out.push_str(&format!("  {:<11}{line}\n", if i == 0 { label } else { "" }));
        }
    };
    row("cause", &[format!("{}: {} ({})", incident.cause, incident.title, incident.confidence.as_str())]);
    let mut suffers = vec![incident.suffers.summary.clone()];
    if !incident.suffers.clients.is_empty() {
        let more = match incident.suffers.more_clients {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        suffers.push(format!("clients seen: {}{more}", incident.suffers.clients.join(", ")));
    }
    row("suffers", &suffers);
    row("proof", &incident.proof);
    let ruled_out: Vec<String> =
        incident.ruled_out.iter().map(|r| format!("{}: {}", r.cause, r.why)).collect();
    row("ruled out", &ruled_out);
    let explained: Vec<String> =
        incident.explained.iter().map(|e| format!("{} ({})", e.cause, e.symptoms)).collect();
    if !explained.is_empty() {
        row(
            "explains",
            &[format!(
                "signs that alone would look like {}: each is joined to the proof above",
                explained.join(", ")
            )],
        );
    }
    let not_seen: Vec<String> = incident
        .not_seen
        .iter()
        .map(|n| {
            format!(
                "{} on {} ({}): can't rule out {}",
                n.observer.as_str(),
                n.place,
                n.why,
                n.hides.join(", ")
            )
        })
        .collect();
    row("not seen", &not_seen);
    row("mend", &[incident.mend.clone(), format!("→ nslookout explain {}", incident.cause)]);
    out
}

/// "2026-05-04 14:03:07 UTC" of what RFC 3339 writes with T and fractions.
fn day_and_clock(rfc3339: &str) -> String {
    let whole = rfc3339.split(['.', 'Z']).next().unwrap_or_default();
    format!("{} UTC", whole.replacen('T', " ", 1))
}

fn clock(at: WallTime) -> String {
    format!("{} UTC", correlate::time_of_day(at).split('.').next().unwrap_or_default())
}

fn wait_words(ms: f64) -> String {
    if ms >= 1000.0 { format!("{:.1} s", ms / 1000.0) } else { format!("{ms:.1} ms") }
}
