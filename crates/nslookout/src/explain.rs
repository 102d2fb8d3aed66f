//! `nslookout explain CAUSE`: what a cause means, what proves it, what mends it.

use correlate::Cause;

/// The page of one cause.
pub fn page(cause: &Cause) -> String {
    let reads: Vec<&str> = cause.reads.iter().map(|observer| observer.as_str()).collect();
    let reads = if reads.is_empty() { "nothing of its own".to_owned() } else { reads.join(", ") };
    format!(
        "{}: {}\n\n  seen       {}\n  proof      {}\n  against    {}\n  reads      {reads}\n  mend       {}\n",
        cause.id, cause.title, cause.seen, cause.proves, cause.against, cause.mend
    )
}

/// The same as JSON.
pub fn json(cause: &Cause) -> serde_json::Value {
    serde_json::json!({
        "schema": crate::status::SCHEMA,
        "cause": cause.id,
        "title": cause.title,
        "seen": cause.seen,
        "proves": cause.proves,
        "against": cause.against,
        "mend": cause.mend,
        "reads": cause.reads,
    })
}

/// All causes, a line each.
pub fn list() -> String {
    correlate::causes().iter().map(|cause| format!("{:<18}{}\n", cause.id, cause.title)).collect()
}
