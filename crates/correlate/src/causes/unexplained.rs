//! What hurts and fits no cause. Counted and shown: better none than a wrong one.

use super::{Case, Cause, Telling};
use crate::symptom::Kind;
use crate::view::View;

pub(super) static CAUSE: Cause = Cause {
    id: super::UNEXPLAINED,
    title: "no known cause fits",
    seen: "Lookups fail or crawl.",
    proves: "Nothing: symptoms are here, and no cause's proof or circumstances are.",
    against: "A cause that fits.",
    mend: "Look at what could not be seen first: give the missing capability or the inventory, then wait for the next \
           symptom. The symptoms with their packets are in the incident's proof.",
    reads: &[],
    drops: None,
    waits_for_resend: false,
    judge: |_, _| None,
    looks_like: |_| false,
    absent: |_| None,
    tell,
};

fn tell(case: &Case, _view: &View) -> Telling {
    let lookups = case.symptoms.iter().filter(|symptom| matches!(symptom.kind, Kind::Lookup(_))).count();
    let others = case.symptoms.len() - lookups;
    Telling {
        title: "DNS fails, and no known cause fits".into(),
        proof: vec![format!(
            "of the last {} symptoms {lookups} are lookups, {others} dropped packets or mappings",
            case.symptoms.len()
        )],
        mend: CAUSE.mend.into(),
    }
}
