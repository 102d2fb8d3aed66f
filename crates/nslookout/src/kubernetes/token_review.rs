//! Does the API server itself vouch for a token, and for whom?
//!
//! It alone knows whether the pod still exists. The node comes from what it says of the token, or before Kubernetes
//! 1.30 from the pod of that uid.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use tokio::time::timeout;

use super::connect::ApiServer;
use super::token::{Expected, Identity, Refusal, Token};
use super::trouble;

/// Asks the API server. [`Refusal::Unchecked`] where it gives no answer.
pub async fn review(api: &ApiServer, expected: &Expected, token: &str) -> Result<Identity, Refusal> {
    let expires = Token::parse(token)?.claims.expires();
    let reviews = Api::<TokenReview>::all(api.client.clone());
    let question = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![expected.audience.clone()]),
        },
        ..TokenReview::default()
    };
    let create = "create tokenreviews.authentication.k8s.io";
    let answer = answer(create, reviews.create(&PostParams::default(), &question)).await?;
    let status = answer.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not authenticated".to_owned());
        return Err(Refusal::Refused { why });
    }
    // A server that knows no audiences names none, and its yes says nothing about ours.
    expected.audience(&status.audiences.unwrap_or_default())?;
    let user = status.user.unwrap_or_default();
    let service_account = expected.account(user.username.as_deref().unwrap_or_default())?.to_owned();
    let pod = extra(&user, "pod-name").ok_or(Refusal::Unbound { to: "pod" })?;
    let pod_uid = extra(&user, "pod-uid").ok_or(Refusal::Unbound { to: "pod" })?;
    let node = match extra(&user, "node-name") {
        Some(node) => node,
        None => node_of(api, &expected.namespace, &pod, &pod_uid).await?,
    };
    let namespace = expected.namespace.clone();
    Ok(Identity { node, namespace, service_account, pod, pod_uid, expires, reviewed: true })
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    let extra: &BTreeMap<String, Vec<String>> = user.extra.as_ref()?;
    extra.get(&format!("authentication.kubernetes.io/{key}"))?.first().cloned()
}

async fn node_of(api: &ApiServer, namespace: &str, name: &str, uid: &str) -> Result<String, Refusal> {
    let pods = Api::<Pod>::namespaced(api.client.clone(), namespace);
    let pod = answer("get pods", pods.get_opt(name)).await?;
    let gone = || Refusal::Refused { why: format!("its pod {namespace}/{name} is gone") };
    let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)).ok_or_else(gone)?;
    pod.spec.and_then(|spec| spec.node_name).ok_or(Refusal::Unbound { to: "node" })
}

/// `what` is the verb and resource that RBAC has to allow.
async fn answer<T>(what: &str, asked: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    match timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            401 => Refusal::Unable { missing: "the API server does not accept our own token".to_owned() },
            403 => Refusal::Unable { missing: format!("RBAC: the correlator may not {what}") },
            code => Refusal::Unchecked { why: format!("the API server answers {code}: {}", status.message) },
        }),
        Ok(Err(error)) => {
            let why = format!("the API server can't be asked to {what}: {}", trouble::root(&error));
            Err(Refusal::Unchecked { why })
        }
        Err(_) => {
            let why = format!("the API server did not answer within {} s", ANSWER.as_secs());
            Err(Refusal::Unchecked { why })
        }
    }
}

const ANSWER: Duration = Duration::from_secs(4);
