//! Claims about evidence that is lost: who is told, and how soon?

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::program::{Alertmanager, eventually};
use crate::site::Site;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_makes_an_alert_within_15_seconds_which_ends_with_the_next_one() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut alertmanager = Alertmanager::start_at(free, None).await;
    let mut site = Site::new(&["node-a", "node-b"]);
    site.alertmanagers = json!({"addresses": [format!("http://{free}")]});
    site.start_dns();
    site.start_correlator();
    eventually("the watchdog fires", async || alertmanager.fires("NslookoutWatchdog").await).await;
    let _other = site.start_agent("node-b", "prober");
    let agent = site.start_agent("node-a", "prober");
    for node in ["node-a", "node-b"] {
        let up = format!("nslookout_observer_up{{observer=\"prober\",place=\"{node}\"}}");
        site.wait("both look", || site.figure(&up) == 1);
    }
    assert!(!alertmanager.fires("NslookoutBlind").await);

    let died = Instant::now();
    drop(agent);
    eventually("it is told", async || alertmanager.fires("NslookoutBlind").await).await;
    let took = died.elapsed();
    println!("an agent that died is told after {took:.1?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    let told = alertmanager.firing().await["NslookoutBlind"].clone();
    assert!(
        told["annotations"]["observers"].as_str().unwrap().starts_with("prober on node-a: silent"),
        "{told}"
    );
    assert!(!told["annotations"].to_string().contains("node-b"), "{told}");

    // Alertmanager starts anew meanwhile, and knows of it again.
    alertmanager.down().await;
    alertmanager.up().await;
    eventually("it is told again", async || alertmanager.fires("NslookoutBlind").await).await;

    let _next = site.start_agent("node-a", "prober");
    eventually("it is over", async || alertmanager.told("NslookoutBlind").1 == 1).await;
    assert_eq!(alertmanager.told("NslookoutBlind"), (1, 1));
}
