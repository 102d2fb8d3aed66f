//! Does the API server answer now?
//!
//! Watches can't tell: a quiet one looks the same as a dead one. So it is asked, by a request that reads nothing.
//! Any answer below 500 will do, a refusal too; /readyz is 500 when etcd is gone, and then nothing can change.

use std::time::Duration;

use kube::Client;
use kube::client::Body;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::trouble;
use super::watches::News;

/// Asks until nobody listens.
pub(super) async fn beat(client: Client, out: mpsc::Sender<News>) {
    loop {
        let answer = ask(&client).await;
        let pause = if answer.is_ok() { INTERVAL } else { AGAIN };
        if out.send(News::Beat(answer)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

async fn ask(client: &Client) -> Result<(), String> {
    let mut request = http::Request::new(Body::empty());
    *request.uri_mut() = http::Uri::from_static("/readyz");
    match timeout(ANSWER, client.send(request)).await {
        Ok(Ok(answer)) if answer.status().is_server_error() => {
            Err(format!("it says of itself that it is not ready: {}", answer.status()))
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(trouble::root(&error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

/// An API server that is gone is told within ten seconds.
const INTERVAL: Duration = Duration::from_secs(4);
const AGAIN: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
