//! What does the real Alertmanager hold, as it tells itself?

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use netns::Namespace;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::site::{Alertmanager, Site};
use crate::{Error, dns};

/// An alert as `/api/v2/alerts` gives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// Its identity.
    pub labels: BTreeMap<String, String>,
    /// What may change.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// When it began, RFC 3339.
    pub starts_at: String,
    /// When it ends or ended, RFC 3339.
    pub ends_at: String,
    /// When Alertmanager last heard of it, RFC 3339.
    pub updated_at: String,
}

/// Writes its configuration: no group waits, nobody is called.
pub fn write_files(site: &Site) -> Result<(), Error> {
    let text = "route:\n  receiver: \"null\"\n  group_wait: 0s\n  group_interval: 1s\n  repeat_interval: 1h\nreceivers:\n  - name: \"null\"\n";
    let path = site.dir.join("alertmanager.yaml");
    fs::write(&path, text).map_err(Error::file("write", &path))
}

impl Alertmanager {
    /// The alerts that it holds now, resolved ones left out (it drops them at their end itself).
    pub fn alerts(&self) -> Result<Vec<Alert>, Error> {
        let (status, body) = self.http_get("/api/v2/alerts")?;
        if status != 200 {
            let what = format!("Alertmanager answered {status}: {body}");
            return Err(Error::system(what)(std::io::ErrorKind::InvalidData.into()));
        }
        serde_json::from_str(&body).map_err(|source| Error::Json { path: "/api/v2/alerts".into(), source })
    }

    /// Waits till it says that it is ready.
    pub fn wait_till_ready(&self, deadline: Duration) -> Result<(), Error> {
        dns::wait_for("Alertmanager", deadline, Some(&self.daemon), || match self.http_get("/-/ready") {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(error.to_string()),
        })
    }

    fn http_get(&self, path: &str) -> Result<(u16, String), Error> {
        http_get(&self.daemon.netns, self.address, path)
    }
}

/// A small HTTP/1.0 GET from inside a namespace: status and body. 1.0, so that the body comes as it is and ends
/// with the connection.
pub fn http_get(netns: &Path, address: SocketAddr, path: &str) -> Result<(u16, String), Error> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let answer = Namespace::open(netns)?.run_blocking(move || {
        let wait = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&address, wait)?;
        stream.set_read_timeout(Some(wait))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })?;
    let what = || format!("get http://{address}{path}");
    let answer = answer.map_err(Error::system(what()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| Error::system(what())(std::io::ErrorKind::InvalidData.into()))?;
    Ok((status, body.to_owned()))
}
