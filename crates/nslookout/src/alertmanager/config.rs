//! What can be set of the Alertmanagers, and which settings make no sense?

use std::borrow::Cow;
use std::env;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::target::{Scheme, Target, is_prefix};

/// The `alertmanagers` part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AlertmanagersConfig {
    /// Each of them as http://IP:PORT or https://IP:PORT, with a prefix where it has one, never through a ClusterIP and
    /// never by name: both need what may be broken. Every one gets all alerts; they sort out among themselves who tells.
    pub addresses: Vec<String>,
    /// Services whose every endpoint is an Alertmanager. They come and go with the Service's EndpointSlices, and each is
    /// told by its pod's address.
    pub services: Vec<ServiceConfig>,
    /// The file with the certificate authorities that vouch for those on https: PEM, read for each push.
    pub ca: Option<PathBuf>,
    /// The name in their certificates. It is checked, and never resolved. None: the address itself.
    pub server_name: Option<String>,
    /// The file with a bearer token for all of them, read for each push.
    pub bearer_token_file: Option<PathBuf>,
    /// User and password for all of them.
    // As an Option its mistakes would be told as "not valid under any of the schemas".
    #[schemars(with = "BasicAuthConfig")]
    pub basic_auth: Option<BasicAuthConfig>,
    /// Firing alerts are sent again so often: a lost Alertmanager knows all again after one interval.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub interval: Duration,
    /// Firing alerts run out so long after they were last sent. Long enough for a correlator whose node has died to be
    /// started on another one: 50 s until Kubernetes gives a node up, 15 s of toleration, and time to start. One that
    /// runs out before that is told as over, and then anew.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub lasting: Duration,
    /// A push that takes longer has failed.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", regex(pattern = r"^\d+(ms|s|m|h|d)$"))]
    pub timeout: Duration,
}

/// A Service that leads to Alertmanagers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its name. A headless one will do.
    pub name: String,
    /// Its port, by name or number; 9093 is Alertmanager's own.
    #[serde(default)]
    pub port: ServicePort,
    /// http or https.
    #[serde(default)]
    pub scheme: Scheme,
    /// Where they are served under a prefix (--web.route-prefix).
    #[serde(default)]
    pub path: String,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServicePort {
    /// By the Service's number for it.
    Number(u16),
    /// By its name.
    Name(String),
}

/// HTTP's basic authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicAuthConfig {
    /// The user.
    pub username: String,
    /// The file with the password, read for each push.
    pub password_file: PathBuf,
}

impl Default for AlertmanagersConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            services: Vec::new(),
            ca: None,
            server_name: None,
            bearer_token_file: None,
            basic_auth: None,
            interval: Duration::from_secs(15),
            lasting: Duration::from_secs(180),
            timeout: Duration::from_secs(5),
        }
    }
}

impl AlertmanagersConfig {
    /// What is wrong with it, each with its path.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes: Vec<String> = self
            .addresses
            .iter()
            .enumerate()
            .filter_map(|(i, text)| {
                let problem = Target::parse(text).err()?;
                Some(format!("alertmanagers.addresses[{i}]: {text:?} {problem}"))
            })
            .collect();
        for (i, service) in self.services.iter().enumerate() {
            mistakes.extend(service.mistakes(&format!("alertmanagers.services[{i}]")));
        }
        if self.ca.is_none() && self.speaks_https() {
            mistakes.push("alertmanagers.ca: is missing: https needs an authority to check against".into());
        }
        if let Some(name) = &self.server_name
            && ServerName::try_from(name.as_str()).is_err()
        {
            mistakes.push(format!("alertmanagers.serverName: {name:?} is no name of a server"));
        }
        if self.bearer_token_file.is_some() && self.basic_auth.is_some() {
            mistakes
                .push("alertmanagers.basicAuth: bearerTokenFile is set too; one of them can be sent".into());
        }
        if self.basic_auth.as_ref().is_some_and(|auth| auth.username.contains(':')) {
            mistakes
                .push("alertmanagers.basicAuth.username: has a colon, which would end it (RFC 7617)".into());
        }
        if self.interval < Duration::from_millis(100) {
            mistakes.push("alertmanagers.interval: is below 100ms".into());
        }
        if self.lasting < self.interval * 2 {
            mistakes.push(
                "alertmanagers.lasting: is below two intervals, so alerts would run out while they fire"
                    .into(),
            );
        }
        if self.timeout.is_zero() {
            mistakes.push("alertmanagers.timeout: is zero, so every push would fail".into());
        }
        mistakes
    }

    /// Whether somebody is to be told.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.services.is_empty()
    }

    /// Those of `addresses`; ones that `mistakes` names are left out.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Target> {
        self.addresses.iter().filter_map(|text| Target::parse(text).ok())
    }

    fn speaks_https(&self) -> bool {
        self.targets().any(|target| target.scheme == Scheme::Https)
            || self.services.iter().any(|service| service.scheme == Scheme::Https)
    }
}

impl ServiceConfig {
    /// "namespace/name".
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn mistakes(&self, path: &str) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (key, name) in [("namespace", &self.namespace), ("name", &self.name)] {
            // RFC 1123 labels: what else would be a selector or a path of its own for the API server.
            let proper = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.is_empty() || name.len() > 63 || !name.chars().all(proper) {
                mistakes.push(format!("{path}.{key}: {name:?} is no name of Kubernetes"));
            }
        }
        if matches!(self.port, ServicePort::Number(0)) {
            mistakes.push(format!("{path}.port: is 0, but nothing listens there"));
        }
        if !is_prefix(&self.path) {
            mistakes.push(format!("{path}.path: {:?} is no plain prefix like \"/alertmanager\"", self.path));
        }
        mistakes
    }
}

/// What is wrong with asking for Services where no API server would be asked.
pub fn in_vain(config: &AlertmanagersConfig, has_kubeconfig: bool) -> Option<String> {
    let in_vain =
        !config.services.is_empty() && !has_kubeconfig && env::var_os("KUBERNETES_SERVICE_HOST").is_none();
    in_vain.then(|| {
        "alertmanagers.services: this is no pod and cluster.kubeconfig is not set: only an API server knows a Service's \
         endpoints; use alertmanagers.addresses"
            .to_owned()
    })
}

impl Default for ServicePort {
    fn default() -> Self {
        Self::Number(super::target::DEFAULT_PORT)
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl JsonSchema for ServicePort {
    fn schema_name() -> Cow<'static, str> {
        "ServicePort".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "description": "A port of a Service, by its name or number.",
            "minimum": 1,
            "maximum": 65535,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_told_with_its_path() {
        let service = |port, path: &str| ServiceConfig {
            namespace: "monitoring".into(),
            name: "alertmanager".into(),
            port,
            scheme: Scheme::Https,
            path: path.into(),
        };
        let mut config = AlertmanagersConfig {
            services: vec![service(ServicePort::Number(0), "a b"), service(ServicePort::default(), "/am")],
            server_name: Some("a b".into()),
            bearer_token_file: Some("/token".into()),
            basic_auth: Some(BasicAuthConfig { username: "a:b".into(), password_file: "/password".into() }),
            ..AlertmanagersConfig::default()
        };
        let told: Vec<String> =
            config.mistakes().iter().map(|m| m.split(": ").next().unwrap().to_owned()).collect();
        assert_eq!(
            told,
            [
                "alertmanagers.services[0].port",
                "alertmanagers.services[0].path",
                "alertmanagers.ca",
                "alertmanagers.serverName",
                "alertmanagers.basicAuth",
                "alertmanagers.basicAuth.username",
            ]
        );
        config.services.remove(0);
        config.ca = Some("/ca.crt".into());
        config.server_name = Some("alertmanager".into());
        config.basic_auth = None;
        assert_eq!(config.mistakes(), Vec::<String>::new());
    }

    #[test]
    fn services_need_an_api_server() {
        let service = ServiceConfig {
            namespace: "Monitoring".into(),
            name: "a=b".into(),
            port: ServicePort::default(),
            scheme: Scheme::default(),
            path: String::new(),
        };
        let config = AlertmanagersConfig { services: vec![service], ..AlertmanagersConfig::default() };
        assert_eq!(config.mistakes().len(), 2, "{:?}", config.mistakes());
        assert_eq!(in_vain(&config, true), None);
        assert!(in_vain(&config, false).unwrap().starts_with("alertmanagers.services: this is no pod"));
        assert_eq!(in_vain(&AlertmanagersConfig::default(), false), None);
    }
}
