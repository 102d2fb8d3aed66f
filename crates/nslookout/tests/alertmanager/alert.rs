//! What does an alert look like?

use evidence::WallTime;
use nslookout::alertmanager::Alert;

/// A critical one.
pub fn alert(name: &str, starts_at: WallTime) -> Alert {
    Alert {
        labels: [("alertname".to_owned(), name.to_owned()), ("severity".to_owned(), "critical".to_owned())]
            .into(),
        annotations: [("proof".to_owned(), "one".to_owned())].into(),
        starts_at,
        ends_at: None,
    }
}
