//! Where is one Alertmanager? By its address, never by a name.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One Alertmanager.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its own, never a virtual one.
    pub address: SocketAddr,
    /// What it speaks.
    pub scheme: Scheme,
    /// Where it is served under a prefix (--web.route-prefix); without the last slash.
    pub prefix: String,
}

/// What an Alertmanager speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

impl Target {
    /// The error goes on after the text itself.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(_) | None => return Err("is neither http://IP:PORT nor https://IP:PORT"),
        };
        let (host, path) = rest.split_at_checked(rest.find('/').unwrap_or(rest.len())).unwrap_or((rest, ""));
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let address = host
            .parse()
            .or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)))
            .map_err(|_| {
                "is no IP address: a host name can't be resolved while DNS is down; use http://IP:PORT, or \
                 alertmanagers.services"
            })?;
        if !is_prefix(path) {
            return Err("has a path that is no plain prefix; use http://IP:PORT");
        }
        Ok(Self::new(address, scheme, path))
    }

    /// `path` is a prefix.
    pub fn new(address: SocketAddr, scheme: Scheme, path: &str) -> Self {
        let prefix = path.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Self { address, scheme, prefix }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}{}", self.address, self.prefix)
    }
}

/// Whether a path is as plain as a prefix is.
pub(super) fn is_prefix(path: &str) -> bool {
    path.chars().all(|c| c.is_ascii_alphanumeric() || "/-._~".contains(c))
}

/// Alertmanager's own.
pub(super) const DEFAULT_PORT: u16 = 9093;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_taken() {
        for (text, expected) in [
            ("http://10.0.0.5:9093", Some("http://10.0.0.5:9093")),
            ("http://10.0.0.5", Some("http://10.0.0.5:9093")),
            ("https://10.0.0.5:443/", Some("https://10.0.0.5:443")),
            ("http://[fd00::5]:1/", Some("http://[fd00::5]:1")),
            ("http://[fd00::5]/am/", Some("http://[fd00::5]:9093/am")),
            ("http://alertmanager:9093", None),
            ("https://alertmanager:9093", None),
            ("10.0.0.5:9093", None),
            ("http://10.0.0.5:9093/a b", None),
            ("", None),
        ] {
            let target = Target::parse(text).ok().map(|target| target.to_string());
            assert_eq!(target.as_deref(), expected, "{text}");
        }
    }
}
