//! Which texts does a value of a certain shape allow, and what is said of others?

use std::net::SocketAddr;

use humantime_serde::re::humantime;

use crate::alertmanager;
use crate::inventory::ServerAddress;

/// Texts that stand for something, checked by the code that reads them. The schema names them by `format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Duration,
    Server,
    Listen,
    Alertmanager,
}

impl Shape {
    pub(super) const ALL: [Self; 4] = [Self::Duration, Self::Server, Self::Listen, Self::Alertmanager];

    /// "duration" would be JSON Schema's own, which is ISO 8601.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Duration => "time-span",
            Self::Server => "server-address",
            Self::Listen => LISTEN,
            Self::Alertmanager => "alertmanager",
        }
    }

    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// The structs give durations and addresses by patterns; a test holds that there are no others.
    pub(super) fn of_pattern(pattern: &str) -> Option<Self> {
        if pattern.contains("ms|s|") {
            Some(Self::Duration)
        } else if pattern.contains("0-9a-fA-F:.") {
            Some(Self::Server)
        } else {
            None
        }
    }

    /// What is wrong with a text; goes on after the text itself.
    pub(super) fn problem(self, text: &str) -> Option<String> {
        match self {
            Self::Duration => humantime::parse_duration(text)
                .is_err()
                .then(|| "is no duration (like \"2s\", \"500ms\")".into()),
            Self::Server => ServerAddress::try_from(text.to_owned()).is_err().then(|| {
                "is no IP address (like \"10.96.0.10\", \"10.96.0.10:5353\"); a name would have to be resolved"
                    .into()
            }),
            Self::Listen => text
                .parse::<SocketAddr>()
                .is_err()
                .then(|| "is no IP address with a port (like \"127.0.0.1:9853\")".into()),
            Self::Alertmanager => alertmanager::address_problem(text).map(str::to_owned),
        }
    }
}

/// An address and port to listen on.
pub(super) const LISTEN: &str = "listen-address";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pattern_lets_pass_is_still_read() {
        for (shape, text, fine) in [
            (Shape::Duration, "1m 30s", true),
            (Shape::Duration, "99999999999999999999s", false),
            (Shape::Server, "10.96.0.10", true),
            (Shape::Server, "10.0.0.999", false),
            (Shape::Server, "kube-dns", false),
            (Shape::Listen, "[::1]:9853", true),
            (Shape::Listen, "127.0.0.1", false),
            (Shape::Alertmanager, "http://10.0.0.5:9093", true),
            (Shape::Alertmanager, "https://10.0.0.5:9093/am", true),
            (Shape::Alertmanager, "10.0.0.5:9093", false),
        ] {
            assert_eq!(shape.problem(text).is_none(), fine, "{text}");
        }
    }
}
