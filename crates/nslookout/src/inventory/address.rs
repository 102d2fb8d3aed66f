//! A server's address in the configuration: an IP address, with a port where it isn't 53.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// "10.96.0.10", "10.96.0.10:5353", "fd00::10" or "[fd00::10]:53". Never a name: it would have to be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerAddress(pub SocketAddr);

impl TryFrom<String> for ServerAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT)))
            .map(Self)
            .map_err(|_| {
                format!("{text:?} is no IP address (names are not allowed: they would have to be resolved)")
            })
    }
}

impl From<ServerAddress> for String {
    fn from(address: ServerAddress) -> Self {
        address.0.to_string()
    }
}

impl JsonSchema for ServerAddress {
    fn schema_name() -> Cow<'static, str> {
        "ServerAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An IP address, with a port where it isn't 53; never a name.",
            "pattern": r"^(\[[0-9a-fA-F:.]+\]:[0-9]{1,5}|[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,5})?|[0-9a-fA-F.]*:[0-9a-fA-F:.]*)$",
        })
    }
}

/// Where none is said.
pub(crate) const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_its_port_out() {
        for (text, address) in [
            ("10.96.0.10", "10.96.0.10:53"),
            ("10.96.0.10:5353", "10.96.0.10:5353"),
            ("fd00::10", "[fd00::10]:53"),
            ("[fd00::10]:54", "[fd00::10]:54"),
        ] {
            let read = ServerAddress::try_from(text.to_owned()).unwrap();
            assert_eq!(String::from(read), address);
        }
        assert!(ServerAddress::try_from("kube-dns".to_owned()).is_err());
    }
}
