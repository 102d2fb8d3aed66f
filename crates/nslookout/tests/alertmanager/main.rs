//! Does a real Alertmanager learn of every alert once, whatever state it is in?
//!
//! Each test runs Debian's Alertmanager with a webhook that keeps what people would have been told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

mod access;
mod alert;
mod program;

use std::net::SocketAddr;
use std::time::Duration;

use alert::alert;
use evidence::WallTime;
use nslookout::alertmanager::{Alert, AlertmanagersConfig, Known, Ledger, Legacy, Pusher, ToldAll, start};
use nslookout::alerts::rfc3339;
use nslookout::metrics::Metrics;
use program::{Alertmanager, eventually};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// A port of loopback that is free now.
async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// On a port of its own, without TLS.
async fn plain() -> Alertmanager {
    Alertmanager::start_at(free_address().await, None).await
}

fn push_to(addresses: &[SocketAddr], metrics: &Metrics) -> Pusher {
    push_after(addresses, metrics, Legacy::default())
}

/// After an earlier process.
fn push_after(addresses: &[SocketAddr], metrics: &Metrics, legacy: Legacy) -> Pusher {
    let config = AlertmanagersConfig {
        addresses: addresses.iter().map(|address| format!("http://{address}")).collect(),
        interval: Duration::from_millis(700),
        lasting: LASTING,
        ..AlertmanagersConfig::default()
    };
    start(&config, "test", Known::nothing(), legacy, metrics)
}

const LASTING: Duration = Duration::from_millis(2800);

#[tokio::test]
async fn an_alert_fires_is_updated_and_resolves_and_people_hear_of_it_once() {
    let alertmanager = plain().await;
    let pusher = push_to(&[alertmanager.address], &Metrics::new().unwrap());
    eventually("the watchdog fires", async || alertmanager.fires("NslookoutWatchdog").await).await;

    let began = WallTime::now();
    let mut one = alert("One", began);
    pusher.set(vec![one.clone()]);
    let took = eventually("One fires", async || alertmanager.fires("One").await).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let starts_at = alertmanager.firing().await["One"]["startsAt"].clone();
    assert_eq!(starts_at, rfc3339(began));

    one.annotations.insert("proof".into(), "two".into());
    pusher.set(vec![one.clone()]);
    eventually("its annotation is new", async || {
        alertmanager.firing().await["One"]["annotations"]["proof"] == "two"
    })
    .await;
    // Longer than it would live without being sent again.
    sleep(Duration::from_secs(4)).await;
    let firing = alertmanager.firing().await;
    assert_eq!(firing["One"]["startsAt"], starts_at);
    assert_eq!(firing.keys().collect::<Vec<_>>(), ["NslookoutWatchdog", "One"]);

    one.ends_at = Some(WallTime::now());
    pusher.set(vec![one]);
    let took = eventually("One is over", async || !alertmanager.fires("One").await).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    eventually("people hear that it is over", async || alertmanager.told("One").1 > 0).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(alertmanager.told("One"), (1, 1));
    assert_eq!(alertmanager.told("NslookoutWatchdog"), (1, 0));
}

#[tokio::test]
async fn what_happens_while_it_is_down_is_told_once_when_it_is_back() {
    let mut alertmanager = plain().await;
    let pusher = push_to(&[alertmanager.address], &Metrics::new().unwrap());
    let [stays, ends, begins, flares] =
        ["Stays", "Ends", "Begins", "Flares"].map(|name| alert(name, WallTime::now()));
    pusher.set(vec![stays.clone(), ends.clone()]);
    eventually("people hear of both", async || {
        alertmanager.told("Stays") == (1, 0) && alertmanager.told("Ends") == (1, 0)
    })
    .await;

    alertmanager.down().await;
    let at = WallTime::now();
    pusher.set(vec![stays.clone(), begins.clone(), Alert { starts_at: at, ..flares.clone() }]);
    sleep(Duration::from_millis(1500)).await;
    let over = WallTime::now();
    let flared = Alert { starts_at: at, ends_at: Some(over), ..flares };
    let ended = Alert { ends_at: Some(over), ..ends };
    pusher.set(vec![stays, begins, flared, ended]);
    sleep(Duration::from_millis(500)).await;

    alertmanager.up().await;
    let took = eventually("it hears of Begins", async || alertmanager.fires("Begins").await).await;
    assert!(took < Duration::from_secs(12), "{took:?}");
    let flared = alertmanager.firing().await["Flares"].clone();
    assert_eq!(flared["annotations"]["ended"], rfc3339(over));
    assert_eq!(flared["startsAt"], rfc3339(at));
    assert!(!alertmanager.fires("Ends").await);
    eventually("Flares runs out", async || !alertmanager.fires("Flares").await).await;
    eventually("people hear that both are over", async || {
        alertmanager.told("Ends").1 == 1 && alertmanager.told("Flares").1 == 1
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    let told = ["Stays", "Ends", "Begins", "Flares"].map(|name| alertmanager.told(name));
    assert_eq!(told, [(1, 0), (1, 1), (1, 0), (1, 1)]);
}

#[tokio::test]
async fn slow_dead_and_mad_ones_hold_up_nobody() {
    let alertmanager = plain().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = free_address().await;
    let addresses = [silent.local_addr().unwrap(), dead, garbage.local_addr().unwrap(), alertmanager.address];
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = garbage.accept().await {
            drop(stream.write_all(b"\x16\x03\x01 I am no HTTP\r\n\r\n").await);
        }
    });
    let metrics = Metrics::new().unwrap();
    let pusher = push_to(&addresses, &metrics);
    eventually("the watchdog fires", async || alertmanager.fires("NslookoutWatchdog").await).await;
    let begin = Instant::now();
    pusher.set(vec![alert("One", WallTime::now())]);
    assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
    let took = eventually("the healthy one hears of it", async || alertmanager.fires("One").await).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    for address in addresses {
        let result = if address == alertmanager.address { "accepted" } else { "failed" };
        let line =
            format!("nslookout_alertmanager_sends_total{{alertmanager=\"{address}\",result=\"{result}\"}}");
        eventually(&line, async || String::from_utf8_lossy(&metrics.page()).contains(&line)).await;
    }
}

#[tokio::test]
async fn the_end_of_nslookout_resolves_nothing() {
    let alertmanager = plain().await;
    let pusher = push_to(&[alertmanager.address], &Metrics::new().unwrap());
    pusher.set(vec![alert("One", WallTime::now())]);
    eventually("One fires", async || alertmanager.fires("One").await).await;
    drop(pusher);
    sleep(Duration::from_millis(1500)).await;
    assert!(alertmanager.fires("One").await);
    // Nobody goes on with it: it runs out.
    let took = eventually("One runs out", async || !alertmanager.fires("One").await).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn each_of_a_pair_gets_all_also_the_one_that_was_away() {
    let mut pair = [plain().await, plain().await];
    let pusher = push_to(&[pair[0].address, pair[1].address], &Metrics::new().unwrap());
    pusher.set(vec![alert("One", WallTime::now())]);
    for alertmanager in &pair {
        eventually("both have One", async || alertmanager.fires("One").await).await;
    }
    pair[1].down().await;
    pusher.set(vec![alert("One", WallTime::now()), alert("Two", WallTime::now())]);
    let took = eventually("the other hears of Two", async || pair[0].fires("Two").await).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    pair[1].up().await;
    eventually("the one that was away hears of Two", async || pair[1].fires("Two").await).await;
    eventually("both have told people", async || {
        pair.iter().all(|alertmanager| alertmanager.told("Two") == (1, 0))
    })
    .await;
}

#[tokio::test]
async fn what_the_process_before_told_as_over_is_not_told_again() {
    let alertmanager = plain().await;
    let legacy = Legacy::default();
    let pusher = push_after(&[alertmanager.address], &Metrics::new().unwrap(), legacy.clone());
    let (told, untold) = (alert("Told", WallTime::now()), alert("Untold", WallTime::now()));
    pusher.set(vec![told.clone()]);
    eventually("people hear of it", async || alertmanager.told("Told") == (1, 0)).await;
    let over = |alert: Alert| Alert { ends_at: Some(WallTime::now()), ..alert };
    let told = over(told);
    pusher.set(vec![told.clone()]);
    eventually("people hear that it is over", async || alertmanager.told("Told") == (1, 1)).await;

    let kept = serde_json::to_string(&legacy.ledger.all()).unwrap();
    drop(pusher);
    let all: ToldAll = serde_json::from_str(&kept).unwrap();
    let legacy = Legacy { ledger: Ledger::restored(all), asks: false };
    let next = push_after(&[alertmanager.address], &Metrics::new().unwrap(), legacy);
    next.set(vec![told, over(untold)]);
    eventually("people hear late of what nobody was told", async || alertmanager.told("Untold") == (1, 1))
        .await;
    assert_eq!(alertmanager.told("Told"), (1, 1));
}

#[tokio::test]
async fn a_process_that_knows_nothing_asks_what_still_fires_and_goes_on_with_it() {
    let alertmanager = plain().await;
    let pusher = push_to(&[alertmanager.address], &Metrics::new().unwrap());
    let ours = |cause: &str, cluster: &str| {
        let mut alert = alert("NslookoutDNS", WallTime::now());
        alert.labels.extend([("cause".into(), cause.into()), ("cluster".into(), cluster.into())]);
        alert.annotations.insert("incident".into(), format!("{cause}-1"));
        alert
    };
    let began = ours("server-silent", "test");
    pusher.set(vec![
        began.clone(),
        ours("server-silent", "another"),
        ours("of-a-later-version", "test"),
        alert("One", WallTime::now()),
    ]);
    eventually("all fire", async || alertmanager.fires("One").await).await;
    drop(pusher);

    let legacy = Legacy { asks: true, ..Legacy::default() };
    let mut next = push_after(&[alertmanager.address], &Metrics::new().unwrap(), legacy);
    let held = next.held().await;
    let causes: Vec<&str> = held.iter().map(|alert| alert.labels["cause"].as_str()).collect();
    assert_eq!(causes.len(), 2, "{causes:?}");
    let incidents: Vec<_> = held.iter().filter_map(nslookout::alertmanager::incident).collect();
    assert_eq!(incidents.len(), 1);
    assert_eq!(
        (incidents[0].cause.as_str(), rfc3339(incidents[0].since)),
        ("server-silent", rfc3339(began.starts_at))
    );
    // It is over now: resolved at once, and not told late.
    let over = WallTime::now();
    next.set(held.into_iter().map(|alert| Alert { ends_at: Some(over), ..alert }).collect());
    eventually("people hear that all are over", async || alertmanager.told("NslookoutDNS") == (3, 3)).await;
}
