//! Claims about tokens: the API server makes them by TokenRequest, and judges them.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use evidence::{Role, WallTime};
use nslookout::config::AccountsConfig;
use nslookout::inventory::ClusterConfig;
use nslookout::kubernetes::{ApiServer, Expected, Identity, Keys, Refusal, Reviewer, connect, review};
use nslookout::store::KeptFile;
use nslookout::transport::api_server::ApiReviewer;
use nslookout::transport::{Refused, Reviewer as _};
use prometheus::IntCounter;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, eventually_within};
use crate::objects::*;

/// A control plane with two nodes, and one prober on each.
pub async fn plane() -> ControlPlane {
    let plane = ControlPlane::start().await;
    for node in ["node-a", "node-b"] {
        plane.create(NODES, named(node, json!({}))).await;
    }
    for account in ["prober", "other", "correlator", "powerless"] {
        create_account(&plane, "dns", account).await;
    }
    let rules = json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ]);
    grant(&plane, "reviewer", ("dns", "correlator"), rules).await;
    plane
}

fn expected() -> Expected {
    Expected {
        audience: "nslookout".to_owned(),
        namespace: "dns".to_owned(),
        service_accounts: vec!["node".to_owned(), "prober".to_owned()],
    }
}

/// The API server as a service account asks it.
async fn api_as(plane: &ControlPlane, account: &str) -> ApiServer {
    let token = plane.token(&format!("dns/{account}"), json!({})).await;
    let kubeconfig = Some(plane.kubeconfig(account, &token));
    connect(&ClusterConfig { kubeconfig, ..ClusterConfig::default() }).await.unwrap()
}

/// Makes a pod; gives its uid.
pub async fn create_pod(plane: &ControlPlane, name: &str, node: Option<&str>, account: &str) -> String {
    let pod = plane.create("/api/v1/namespaces/dns/pods", pod(name, node, account, "prober")).await;
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// A token as kubelet has it made for a pod.
pub async fn pod_token(plane: &ControlPlane, account: &str, audience: &str, pod: &str, uid: &str) -> String {
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid});
    let spec = json!({"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound});
    plane.token(&format!("dns/{account}"), spec).await
}

/// The same token with other claims, signed by the cluster's own key.
pub fn signed_anew(token: &str, folder: &Path, change: impl Fn(&mut Value)) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    change(&mut claims);
    let signed = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()));
    let pem = std::fs::read_to_string(folder.join("tokens.key")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let random = SystemRandom::new();
    let der = STANDARD.decode(der).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).unwrap();
    let signature = key.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The same token with other claims and the old signature.
fn forged(token: &str) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let claims = URL_SAFE_NO_PAD.encode(claims.replace("node-a", "node-b"));
    format!("{}.{claims}.{}", parts[0], parts[2])
}

pub fn expire(claims: &mut Value) {
    let exp = claims["exp"].as_i64().unwrap() - 3600;
    (claims["iat"], claims["nbf"], claims["exp"]) = (json!(exp - 600), json!(exp - 600), json!(exp));
}

#[tokio::test]
async fn the_api_server_vouches_for_ours_and_for_nobody_else() {
    let plane = plane().await;
    let api = api_as(&plane, "correlator").await;
    let expected = expected();
    let uid = create_pod(&plane, "prober-a", Some("node-a"), "prober").await;
    let ours = pod_token(&plane, "prober", "nslookout", "prober-a", &uid).await;
    let refused = async |token: &str| review(&api, &expected, token).await.unwrap_err();

    let identity = review(&api, &expected, &ours).await.unwrap();
    let left = identity.expires.since(WallTime::now());
    assert!((500..=601).contains(&left.as_secs()), "{left:?}");
    let whole = Identity {
        node: "node-a".to_owned(),
        namespace: "dns".to_owned(),
        service_account: "prober".to_owned(),
        pod: "prober-a".to_owned(),
        pod_uid: uid.clone(),
        expires: identity.expires,
        reviewed: true,
    };
    assert_eq!(identity, whole);

    let other_audience = pod_token(&plane, "prober", "vault", "prober-a", &uid).await;
    assert!(matches!(refused(&other_audience).await, Refusal::Refused { why } if why.contains("audience")));
    let other = create_pod(&plane, "other-a", Some("node-a"), "other").await;
    let other_account = pod_token(&plane, "other", "nslookout", "other-a", &other).await;
    let found = "system:serviceaccount:dns:other".to_owned();
    assert_eq!(refused(&other_account).await, Refusal::Account { found });
    let of_no_pod = plane.token("dns/prober", json!({"audiences": ["nslookout"]})).await;
    assert_eq!(refused(&of_no_pod).await, Refusal::Unbound { to: "pod" });
    assert!(matches!(refused(&forged(&ours)).await, Refusal::Refused { .. }));
    assert!(matches!(refused("no token").await, Refusal::Malformed(_)));
    let expired = signed_anew(&ours, plane.folder(), expire);
    assert!(matches!(refused(&expired).await, Refusal::Refused { why } if why.contains("expired")));

    // As before Kubernetes 1.30: the token names no node, and the pod of that uid is asked for it.
    let late = create_pod(&plane, "prober-late", None, "prober").await;
    let token = pod_token(&plane, "prober", "nslookout", "prober-late", &late).await;
    assert_eq!(refused(&token).await, Refusal::Unbound { to: "node" });
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "prober-late"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node-b"},
    });
    plane.create("/api/v1/namespaces/dns/pods/prober-late/binding", binding).await;
    assert_eq!(review(&api, &expected, &token).await.unwrap().node, "node-b");

    // Once its pod is gone a token is worth nothing, whatever its name has become.
    plane.delete("/api/v1/namespaces/dns/pods/prober-a").await;
    create_pod(&plane, "prober-a", Some("node-b"), "prober").await;
    // The API server itself remembers for ten seconds whom it has vouched for.
    eventually_within(Duration::from_secs(15), "it is refused", async || {
        match review(&api, &expected, &ours).await {
            Err(Refusal::Refused { .. }) => Ok(()),
            other => Err(other),
        }
    })
    .await;

    let powerless = api_as(&plane, "powerless").await;
    let refusal = review(&powerless, &expected, &token).await.unwrap_err();
    let missing = "RBAC: the correlator may not create tokenreviews.authentication.k8s.io".to_owned();
    assert_eq!(refusal, Refusal::Unable { missing });
}

#[tokio::test]
async fn while_the_api_server_is_away_its_keys_vouch_for_new_tokens() {
    let mut plane = plane().await;
    let api = api_as(&plane, "correlator").await;
    let (a, b) = (
        create_pod(&plane, "prober-a", Some("node-a"), "prober").await,
        create_pod(&plane, "prober-b", Some("node-b"), "prober").await,
    );
    let seen = pod_token(&plane, "prober", "nslookout", "prober-a", &a).await;
    let unseen = pod_token(&plane, "prober", "nslookout", "prober-b", &b).await;
    let other_audience = pod_token(&plane, "prober", "vault", "prober-b", &b).await;
    let other = create_pod(&plane, "other-b", Some("node-b"), "other").await;
    let other_account = pod_token(&plane, "other", "nslookout", "other-b", &other).await;
    let file = KeptFile::new(plane.folder(), "keys.json");
    let reviewer = Reviewer::start(api.clone(), expected(), Some(file.clone()));
    let accounts = AccountsConfig {
        namespace: Some("dns".to_owned()),
        prober: "prober".to_owned(),
        ..AccountsConfig::default()
    };
    let unreviewed = IntCounter::new("unreviewed", "unreviewed").unwrap();
    let agents = ApiReviewer::start(api.clone(), accounts, unreviewed.clone(), None);
    let keys = Keys::fetch(&api).await.unwrap();
    eventually_within(Duration::from_secs(10), "the keys are read", async || {
        if reviewer.has_keys() { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert!(reviewer.identify(&seen).await.unwrap().reviewed);
    let agent = agents.review(&seen).await.unwrap();
    assert_eq!((agent.node.as_str(), agent.role, unreviewed.get()), ("node-a", Role::Prober, 0));

    plane.stop_api();
    let identity = reviewer.identify(&unseen).await.unwrap();
    assert_eq!((identity.reviewed, identity.node.as_str()), (false, "node-b"));
    assert_eq!((identity.pod.as_str(), identity.pod_uid), ("prober-b", b));
    assert_eq!(keys.identify(&expected(), &unseen, WallTime::now()).unwrap().node, "node-b");
    let refused = async |token: &str| reviewer.identify(token).await.unwrap_err();
    assert_eq!(refused(&forged(&seen)).await, Refusal::Forged);
    assert_eq!(refused(&other_audience).await.as_str(), "audience");
    assert_eq!(refused(&other_account).await.as_str(), "account");
    assert_eq!(refused(&signed_anew(&unseen, plane.folder(), expire)).await, Refusal::Expired);
    let refusal = review(&api, &expected(), &unseen).await.unwrap_err();
    assert!(matches!(&refusal, Refusal::Unchecked { why } if why.contains("refused")), "{refusal}");
    let blind = Reviewer::start(api.clone(), expected(), None);
    assert!(
        matches!(blind.identify(&unseen).await, Err(Refusal::Unchecked { why }) if why.contains("not known"))
    );

    // A process that begins now has the keys of the one before.
    let next = Reviewer::start(api.clone(), expected(), Some(file));
    let identity = next.identify(&unseen).await.unwrap();
    assert_eq!((identity.reviewed, identity.node.as_str()), (false, "node-b"));
    assert_eq!(next.identify(&forged(&seen)).await.unwrap_err(), Refusal::Forged);

    // The same in the transport's words: the service account says which part it is.
    let agent = agents.review(&unseen).await.unwrap();
    assert_eq!((agent.node.as_str(), agent.role, unreviewed.get()), ("node-b", Role::Prober, 1));
    assert!(matches!(agents.review(&other_account).await, Err(Refused::NotAllowed(_))));
    assert!(matches!(agents.review(&other_audience).await, Err(Refused::Nobody(_))));

    // Back: what the keys alone vouched for is reviewed.
    plane.start_api().await;
    eventually_within(Duration::from_secs(15), "it is reviewed", async || {
        let identity = reviewer.identify(&unseen).await;
        if identity.as_ref().is_ok_and(|identity| identity.reviewed) { Ok(()) } else { Err(identity) }
    })
    .await;
}
