//! Claims about tokens and their signatures. The tokens of testdata/signed_tokens.json were signed by openssl, with
//! keys that were thrown away; they expire in 2100.

use std::collections::BTreeMap;

use super::*;

const NOW: WallTime = WallTime(1_800_000_000_000_000_000);

#[derive(Deserialize)]
struct Signed {
    keys: Vec<Jwk>,
    tokens: BTreeMap<String, String>,
}

fn signed() -> (Keys, BTreeMap<String, String>) {
    let Signed { keys, tokens } =
        serde_json::from_str(include_str!("../../../testdata/signed_tokens.json")).unwrap();
    (Keys::new(Published { issuer: "https://cluster.example".to_owned(), keys }), tokens)
}

fn expected(audience: &str, service_account: &str) -> Expected {
    Expected {
        audience: audience.to_owned(),
        namespace: "dns".to_owned(),
        service_accounts: vec!["node".to_owned(), service_account.to_owned()],
    }
}

fn identify(keys: &Keys, token: &str) -> Result<Identity, Refusal> {
    keys.identify(&expected("nslookout", "prober"), token, NOW)
}

#[test]
fn each_algorithm_that_kubernetes_signs_with_is_verified() {
    let (keys, tokens) = signed();
    assert_eq!(tokens.len(), 3);
    for (algorithm, token) in &tokens {
        let identity = identify(&keys, token).unwrap_or_else(|refusal| panic!("{algorithm}: {refusal}"));
        let Identity { node, pod, pod_uid, service_account, reviewed, .. } = identity;
        let names = [node, pod, pod_uid, service_account];
        assert_eq!(
            (names.map(String::from), reviewed),
            (["node-a", "prober-x", "p1", "prober"].map(String::from), false)
        );
    }
}

#[test]
fn a_token_that_was_tampered_with_is_forged() {
    let (keys, tokens) = signed();
    for token in tokens.values() {
        let parts: Vec<&str> = token.split('.').collect();
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let other = URL_SAFE_NO_PAD.encode(claims.replace("node-a", "node-b"));
        let moved = format!("{}.{other}.{}", parts[0], parts[2]);
        assert_eq!(identify(&keys, &moved).unwrap_err(), Refusal::Forged);
        let unsigned = format!("{}.{}.", parts[0], parts[1]);
        assert_eq!(identify(&keys, &unsigned).unwrap_err(), Refusal::Forged);
    }
}

#[test]
fn the_key_decides_the_algorithm_and_not_the_token() {
    let (keys, tokens) = signed();
    let [_, claims, signature] = tokens["RS256"].split('.').collect::<Vec<_>>()[..] else { panic!() };
    for algorithm in ["none", "HS256", "ES256", "RS512"] {
        let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"{algorithm}\",\"kid\":\"rs256\"}}"));
        let refusal = identify(&keys, &format!("{header}.{claims}.{signature}")).unwrap_err();
        assert_eq!(refusal, Refusal::Forged, "{algorithm}");
    }
    let header = URL_SAFE_NO_PAD.encode("{\"alg\":\"RS256\",\"kid\":\"new\"}");
    let refusal = identify(&keys, &format!("{header}.{claims}.{signature}")).unwrap_err();
    assert_eq!(refusal, Refusal::Unchecked { why: "its signing key is not known here".to_owned() });
}

#[test]
fn a_good_signature_is_not_enough() {
    let (keys, tokens) = signed();
    let token = &tokens["ES256"];
    let refusal = |keys: &Keys, expected: Expected, now| keys.identify(&expected, token, now).unwrap_err();
    let ours = || expected("nslookout", "prober");
    let other =
        Keys::new(Published { issuer: "https://other.example".to_owned(), ..keys.published().clone() });
    assert_eq!(refusal(&other, ours(), NOW), Refusal::Forged);
    assert_eq!(refusal(&keys, ours(), WallTime(4_102_444_800_000_000_000)), Refusal::Expired);
    assert_eq!(refusal(&keys, ours(), WallTime(1_600_000_000_000_000_000)), Refusal::NotYet);
    let audience = refusal(&keys, expected("vault", "prober"), NOW);
    assert_eq!(audience, Refusal::Audience { found: vec!["nslookout".to_owned()] });
    let account = refusal(&keys, expected("nslookout", "prober2"), NOW);
    assert_eq!(account, Refusal::Account { found: "system:serviceaccount:dns:prober".to_owned() });
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    let (keys, tokens) = signed();
    let [header, claims, _] = tokens["ES256"].split('.').collect::<Vec<_>>()[..] else { panic!() };
    let empty = URL_SAFE_NO_PAD.encode("{}");
    for token in [
        String::new(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}.!"),
        format!("{empty}.{claims}.AAAA"),
        format!("{header}.{empty}.AAAA"),
        format!("{header}.{claims}.{}", "A".repeat(20_000)),
    ] {
        assert!(matches!(identify(&keys, &token), Err(Refusal::Malformed(_))), "{token}");
    }
}
