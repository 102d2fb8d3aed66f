//! Whose token is it, by a file? For use outside Kubernetes alone: there the API server reviews tokens.
//!
//! The file is a JSON list: `[{"token": "...", "node": "node-a", "role": "prober", "expires": "2027-01-01T00:00:00Z"}]`.
//! `role` is "prober" or "node"; without `expires` a token never ends. It is read for each review, so that a changed
//! file counts from then on. Who can read it can report in everybody's name: let nobody but the correlator read it.

use std::io::Read;
use std::path::{Path, PathBuf};

use evidence::{Role, WallTime};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::reviewer::{Identity, Refused, Reviewer, Reviewing};

/// Reviews by a file.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    token: String,
    node: String,
    role: Role,
    #[serde(default)]
    pod_uid: String,
    expires: Option<jiff::Timestamp>,
}

impl TokenFile {
    /// By the file of that path.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Reviewer for TokenFile {
    fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a> {
        Box::pin(async move {
            let (path, token) = (self.path.clone(), token.to_owned());
            tokio::task::spawn_blocking(move || find(&path, &token))
                .await
                .unwrap_or_else(|error| Err(Refused::Unavailable(error.to_string())))
        })
    }
}

fn find(path: &Path, token: &str) -> Result<Identity, Refused> {
    let trouble =
        |error: &dyn std::fmt::Display| Refused::Unavailable(format!("{}: {error}", path.display()));
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .map_err(|error| trouble(&error))?;
    let entries: Vec<Entry> = serde_json::from_str(&text).map_err(|error| trouble(&error))?;
    // Hashes are compared, so that the time it takes tells nothing of the token.
    let wanted = Sha256::digest(token.as_bytes());
    let entry = entries
        .into_iter()
        .find(|entry| Sha256::digest(entry.token.as_bytes()) == wanted)
        .ok_or_else(|| Refused::Nobody(format!("it is not in {}", path.display())))?;
    match entry.role {
        Role::Prober | Role::Node => {}
        Role::Servers | Role::Inventory => {
            return Err(Refused::NotAllowed(format!("{:?} is no agent", entry.role)));
        }
    }
    let nanos = entry.expires.map_or(i128::MAX, jiff::Timestamp::as_nanosecond);
    Ok(Identity {
        node: entry.node,
        role: entry.role,
        pod_uid: entry.pod_uid,
        expires: WallTime(i64::try_from(nanos).unwrap_or(i64::MAX)),
    })
}

/// Room for the tokens of 10,000 nodes.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_with_its_node_part_and_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            r#"[{"token": "t1", "node": "a", "role": "prober", "expires": "1970-01-01T00:00:01Z"},
                {"token": "t2", "node": "b", "role": "node"}, {"token": "t3", "node": "b", "role": "inventory"}]"#,
        )
        .unwrap();
        let first = find(file.path(), "t1").unwrap();
        assert_eq!(
            (first.node.as_str(), first.role, first.expires),
            ("a", Role::Prober, WallTime(1_000_000_000))
        );
        assert_eq!(find(file.path(), "t2").unwrap().expires, WallTime(i64::MAX));
        assert!(matches!(find(file.path(), "t3"), Err(Refused::NotAllowed(_))));
        assert!(matches!(find(file.path(), "t"), Err(Refused::Nobody(_))));
        std::fs::write(file.path(), "[{").unwrap();
        assert!(matches!(find(file.path(), "t1"), Err(Refused::Unavailable(_))));
    }
}
