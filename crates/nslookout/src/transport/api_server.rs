//! Whose token is it, by the API server? Its answer in the words of this transport; which part a sender is, its
//! service account says.

use std::sync::Arc;

use evidence::Role;
use prometheus::IntCounter;

use super::reviewer::{Identity, Refused, Reviewer, Reviewing};
use crate::config::AccountsConfig;
use crate::kubernetes::{self, ApiServer, Expected, Refusal};
use crate::store::KeptFile;

/// Reviews by the API server, and by its keys while it is away.
pub struct ApiReviewer {
    reviewer: Arc<kubernetes::Reviewer>,
    accounts: AccountsConfig,
    /// Tokens for which the keys alone vouched.
    unreviewed: IntCounter,
}

impl ApiReviewer {
    /// For agents with these service accounts; where no namespace is set, in that of the connection. The file keeps the
    /// keys over restarts.
    pub fn start(
        api: ApiServer,
        accounts: AccountsConfig,
        unreviewed: IntCounter,
        file: Option<KeptFile>,
    ) -> Self {
        let namespace = accounts.namespace.clone();
        let expected = Expected {
            audience: accounts.audience.clone(),
            namespace: namespace.unwrap_or_else(|| api.client.default_namespace().to_owned()),
            service_accounts: vec![accounts.prober.clone(), accounts.node.clone()],
        };
        Self { reviewer: kubernetes::Reviewer::start(api, expected, file), accounts, unreviewed }
    }

    fn told(&self, identity: kubernetes::Identity) -> Identity {
        if !identity.reviewed {
            self.unreviewed.inc();
        }
        let role = if identity.service_account == self.accounts.prober { Role::Prober } else { Role::Node };
        let kubernetes::Identity { node, pod_uid, expires, .. } = identity;
        // An unreviewed one is asked about again soon enough: `reviews.rs` keeps none for longer than five minutes.
        Identity { node, role, pod_uid, expires }
    }
}

impl Reviewer for ApiReviewer {
    fn review<'a>(&'a self, token: &'a str) -> Reviewing<'a> {
        Box::pin(async move {
            self.reviewer.identify(token).await.map(|identity| self.told(identity)).map_err(refused)
        })
    }
}

fn refused(refusal: Refusal) -> Refused {
    let words = refusal.to_string();
    match refusal {
        Refusal::Malformed(_)
        | Refusal::Expired
        | Refusal::NotYet
        | Refusal::Audience { .. }
        | Refusal::Forged
        | Refusal::Refused { .. } => Refused::Nobody(words),
        Refusal::Account { .. } | Refusal::Unbound { .. } => Refused::NotAllowed(words),
        Refusal::Unable { .. } | Refusal::Unchecked { .. } => Refused::Unavailable(words),
    }
}
