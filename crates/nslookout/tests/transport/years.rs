//! Does an agent trust the correlator at every moment of many years?
//!
//! Real handshakes, by the agents' own line, while years pass in seconds.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nslookout::transport::authority::{Authority, Times};
use nslookout::transport::certificate::{Certificate, Files};
use nslookout::transport::line::{Line, Target, Trouble};
use nslookout::transport::vouch;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

const NAME: &str = "nslookout-correlator";

/// Takes handshakes, and nothing more.
async fn serve(certificate: &Certificate) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(certificate.server_config().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { drop(acceptor.accept(stream).await) });
        }
    });
    address
}

/// Whether an agent that trusts this file takes the server for the correlator.
async fn trusts(ca: &Path, address: SocketAddr) -> Result<(), String> {
    let token = ca.with_extension("token");
    fs::write(&token, "t").unwrap();
    let mut line =
        Line::new(Target { address: Some(address), name: NAME.into(), authority: ca.to_owned(), token });
    match line.post(Bytes::new(), 0).await {
        Err(trouble @ (Trouble::Connect { .. } | Trouble::File { .. } | Trouble::Configuration(_))) => {
            Err(trouble.to_string())
        }
        // The handshake was made; nobody speaks HTTP there.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn certificates(bundle: &str) -> Vec<&str> {
    bundle.split_inclusive("-----END CERTIFICATE-----").map(str::trim).filter(|pem| !pem.is_empty()).collect()
}

#[tokio::test]
async fn an_agent_that_hears_late_of_each_new_authority_trusts_the_correlator_for_three_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (published, agents) = (folder.path().join("ca.crt"), folder.path().join("agents.crt"));
    // An authority lives for seven seconds, where it does for ten years.
    let second = Duration::from_secs(1);
    let times = Times {
        authority: second * 7,
        made_before: second * 4,
        published: second * 2,
        trusted: second,
        server: second * 3,
        renewed: second,
        behind: second,
        looked_at: Duration::from_millis(100),
    };
    let now = SystemTime::now();
    let authority = Authority::load(Some(&folder.path().join("keys")), NAME, times, now).unwrap();
    let first = authority.bundle();
    authority.publish(&published).unwrap();
    fs::write(&agents, &first).unwrap();
    let certificate = Certificate::of(&authority, now).unwrap();
    let address = serve(&certificate).await;
    tokio::spawn(vouch::by_authority(authority, certificate, published.clone(), None));

    let begin = Instant::now();
    let (mut seen, mut most) = (Vec::new(), 0);
    let mut late = Vec::new();
    while begin.elapsed() < second * 18 {
        trusts(&agents, address).await.unwrap();
        let bundle = fs::read_to_string(&published).unwrap();
        most = most.max(certificates(&bundle).len());
        for pem in certificates(&bundle) {
            if !seen.iter().any(|known| known == pem) {
                seen.push(pem.to_owned());
            }
        }
        // kubelet brings it more than a day later.
        late.push((Instant::now(), bundle));
        if let Some(at) = late.iter().rposition(|(at, _)| at.elapsed() > Duration::from_millis(1200)) {
            fs::write(&agents, &late[at].1).unwrap();
            late.drain(..at);
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(seen.len() >= 4, "{} generations", seen.len());
    assert_eq!(most, 2, "the one before leaves");
    fs::write(&agents, &first).unwrap();
    let error = trusts(&agents, address).await.unwrap_err();
    assert!(error.contains("certificate"), "the first one is trusted no more: {error}");
}

/// An authority of somebody else's, and a certificate by it in these files.
fn issue(files: &Files, ca: &Path, name: &str) {
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(ca, params.self_signed(&authority).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(params, authority);
    let certificate =
        CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn a_certificate_that_somebody_else_makes_is_taken_and_replaced_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    let files = Files { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
    assert!(Certificate::from_files(&files, NAME).is_err());
    issue(&files, &ca, "another-name");
    let error = Certificate::from_files(&files, NAME).unwrap_err().to_string();
    assert!(error.contains("correlator.name") && error.contains(NAME), "{error}");

    issue(&files, &ca, NAME);
    let certificate = Certificate::from_files(&files, NAME).unwrap();
    let address = serve(&certificate).await;
    trusts(&ca, address).await.unwrap();
    assert!(!certificate.renew_from_files(&files, NAME).unwrap());

    issue(&files, &ca, NAME);
    trusts(&ca, address).await.unwrap_err();
    assert!(certificate.renew_from_files(&files, NAME).unwrap());
    trusts(&ca, address).await.unwrap();

    // Half written: the certificate of one, the key of another. The last good one stays.
    let key = fs::read(&files.key).unwrap();
    issue(&files, &folder.path().join("next.crt"), NAME);
    fs::write(&files.key, key).unwrap();
    assert!(certificate.renew_from_files(&files, NAME).is_err());
    fs::write(&files.certificate, "nothing").unwrap();
    assert!(certificate.renew_from_files(&files, NAME).is_err());
    trusts(&ca, address).await.unwrap();
}
