//! What is wrong with a watch, in the words of those who can mend it?

use std::error::Error as StdError;

use kube::core::Status;
use kube::runtime::watcher;

use super::watches::Kind;

/// Why a watch shows nothing now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The service account may not: RBAC.
    Refused { verb: &'static str, user: Option<String> },
    /// The API server doesn't take the token.
    Unauthenticated,
    /// The watch is too old; all is listed anew. No trouble.
    Expired,
    /// The network, the server, or an answer that can't be understood.
    Broken(String),
}

impl Trouble {
    /// What an error of a watch comes to.
    pub(super) fn of(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error) => Self::of_request("list", error),
            watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
                Self::of_request("watch", error)
            }
            watcher::Error::WatchError(status) => Self::of_status("watch", status),
            watcher::Error::NoResourceVersion => Self::Broken(error.to_string()),
        }
    }

    fn of_request(verb: &'static str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(verb, status),
            other => Self::Broken(root(other)),
        }
    }

    fn of_status(verb: &'static str, status: &Status) -> Self {
        match status.code {
            401 => Self::Unauthenticated,
            403 => Self::Refused { verb, user: user(&status.message) },
            410 => Self::Expired,
            code => Self::Broken(format!("the API server answers {code}: {}", status.message)),
        }
    }

    /// What is missing, and what can't be seen for it.
    pub(super) fn words(&self, kind: Kind) -> String {
        self.said_of(kind.resource(), kind.scope(), kind.hides())
    }

    /// As [`Self::words`]; `scope` goes on after the resource.
    pub(super) fn said_of(&self, resource: &str, scope: &str, hides: &str) -> String {
        match self {
            Self::Refused { verb, user } => {
                let user = user.as_deref().unwrap_or("the service account");
                format!("RBAC: {user} may not {verb} {resource}{scope}; without it {hides}")
            }
            Self::Unauthenticated => {
                format!("the API server does not accept the token (401); without {resource} {hides}")
            }
            Self::Expired => format!("{resource} are being read anew"),
            Self::Broken(why) => format!("{resource} can't be read: {why}; meanwhile {hides}"),
        }
    }
}

/// `services is forbidden: User "system:serviceaccount:x:y" cannot list ...`.
fn user(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("User \"")?;
    rest.split_once('"').map(|(user, _)| user.to_owned())
}

/// The first cause: what lies above it names layers of software.
pub(super) fn root(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_verb_resource_and_user() {
        let message = "pods is forbidden: User \"system:serviceaccount:dns:nslookout\" cannot list resource \
                       \"pods\" in API group \"\" at the cluster scope";
        let status = Status::failure(message, "Forbidden").with_code(403);
        let trouble = Trouble::of(&watcher::Error::InitialListFailed(kube::Error::Api(status.boxed())));
        let words = trouble.words(Kind::Pods);
        assert!(words.starts_with("RBAC: system:serviceaccount:dns:nslookout may not list pods"), "{words}");
    }
}
