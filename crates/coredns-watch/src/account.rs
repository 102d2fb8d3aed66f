//! What does a CoreDNS server say of itself on its metrics page?
//!
//! CoreDNS has renamed its metrics twice (1.7 and 1.11). For each figure the known names stand here, newest
//! first, and the newest that the page has is taken: pages that carry two of them count nothing twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use evidence::{BootTime, ServerSample, Upstream};

use crate::text::{Sample, samples};

/// A page as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What it says, where it is CoreDNS that speaks.
    pub sample: Option<ServerSample>,
    /// Lines and values that could not be read.
    pub errors: u64,
}

/// Reads a metrics page of the server whose DNS address is `server`.
pub fn read(page: &[u8], server: SocketAddr, at: BootTime) -> Account {
    let mut tally = Tally::default();
    for sample in samples(page) {
        match sample {
            Ok(sample) => tally.add(&sample),
            Err(_malformed) => tally.errors += 1,
        }
    }
    let errors = tally.errors;
    Account { sample: tally.is_coredns.then(|| tally.into_sample(server, at)), errors }
}

/// Answers that clients got.
const REQUESTS: &[&str] = &["coredns_dns_requests_total", "coredns_dns_request_count_total"];
const RESPONSES: &[&str] = &["coredns_dns_responses_total", "coredns_dns_response_rcode_count_total"];
/// Answers that upstreams gave. The first is of 1.11 and later, shared by all plugins that forward.
const UPSTREAM_RESPONSES: &[&str] = &[
    "coredns_proxy_request_duration_seconds_count",
    "coredns_forward_responses_total",
    "coredns_forward_request_duration_seconds_count",
    "coredns_forward_response_rcode_count_total",
];
const HEALTHCHECK_FAILURES: &[&str] = &[
    "coredns_proxy_healthcheck_failures_total",
    "coredns_forward_healthcheck_failures_total",
    "coredns_forward_healthcheck_failure_count_total",
];
const ALL_BROKEN: &[&str] =
    &["coredns_forward_healthcheck_broken_total", "coredns_forward_healthcheck_broken_count_total"];
const PANICS: &[&str] = &["coredns_panics_total", "coredns_panic_count_total"];
const STARTED: &str = "process_start_time_seconds";

/// Distinct keys kept of one figure (response codes, upstreams with their codes). A Corefile names at most 15
/// upstreams in one forward block.
const MAX_KEYS: usize = 512;
/// Longest label value kept.
const MAX_VALUE_BYTES: usize = 256;

/// Sums of one figure, for each of its names apart.
#[derive(Debug)]
struct Figure<K>(BTreeMap<usize, BTreeMap<K, u64>>);

#[derive(Debug, Default)]
struct Tally {
    is_coredns: bool,
    errors: u64,
    started: u64,
    requests: Figure<()>,
    responses: Figure<String>,
    upstream_responses: Figure<(String, String)>,
    healthcheck_failures: Figure<String>,
    all_broken: Figure<()>,
    panics: Figure<()>,
}

impl Tally {
    fn add(&mut self, sample: &Sample<'_>) {
        let name = sample.name;
        self.is_coredns |= name.starts_with("coredns_");
        let kept = if let Some(rank) = rank(REQUESTS, name) {
            self.requests.add(rank, (), sample)
        } else if let Some(rank) = rank(RESPONSES, name) {
            self.responses.add(rank, sample.label("rcode").to_owned(), sample)
        } else if let Some(rank) = rank(UPSTREAM_RESPONSES, name) {
            // The grpc and other plugins share the newest name.
            if !matches!(sample.label("proxy_name"), "" | "forward") {
                return;
            }
            let key = (sample.label("to").to_owned(), sample.label("rcode").to_owned());
            self.upstream_responses.add(rank, key, sample)
        } else if let Some(rank) = rank(HEALTHCHECK_FAILURES, name) {
            if !matches!(sample.label("proxy_name"), "" | "forward") {
                return;
            }
            self.healthcheck_failures.add(rank, sample.label("to").to_owned(), sample)
        } else if let Some(rank) = rank(ALL_BROKEN, name) {
            self.all_broken.add(rank, (), sample)
        } else if let Some(rank) = rank(PANICS, name) {
            self.panics.add(rank, (), sample)
        } else if name == STARTED {
            count(sample.value).inspect(|started| self.started = *started).is_some()
        } else {
            return;
        };
        if !kept {
            self.errors += 1;
        }
    }

    fn into_sample(self, server: SocketAddr, at: BootTime) -> ServerSample {
        let mut upstreams: BTreeMap<String, Upstream> = BTreeMap::new();
        for ((address, rcode), answers) in self.upstream_responses.newest() {
            upstreams.entry(address).or_default().responses.insert(rcode, answers);
        }
        for (address, failures) in self.healthcheck_failures.newest() {
            upstreams.entry(address).or_default().healthcheck_failures = failures;
        }
        ServerSample {
            server,
            at,
            started_unix_secs: self.started,
            requests: self.requests.newest().into_values().sum(),
            responses: self.responses.newest(),
            upstreams: upstreams
                .into_iter()
                .map(|(address, upstream)| Upstream { address, ..upstream })
                .collect(),
            all_upstreams_broken: self.all_broken.newest().into_values().sum(),
            panics: self.panics.newest().into_values().sum(),
        }
    }
}

impl<K: Ord> Figure<K> {
    /// False if the value is no count, or the page has more keys than are kept.
    fn add(&mut self, rank: usize, key: K, sample: &Sample<'_>) -> bool {
        if sample.labels.iter().any(|(_, value)| value.len() > MAX_VALUE_BYTES) {
            return false;
        }
        let Some(value) = count(sample.value) else { return false };
        let sums = self.0.entry(rank).or_default();
        if sums.len() >= MAX_KEYS && !sums.contains_key(&key) {
            return false;
        }
        let sum = sums.entry(key).or_default();
        *sum = sum.saturating_add(value);
        true
    }

    fn newest(mut self) -> BTreeMap<K, u64> {
        self.0.pop_first().map(|(_, sums)| sums).unwrap_or_default()
    }
}

impl<K> Default for Figure<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

fn rank(names: &[&str], name: &str) -> Option<usize> {
    names.iter().position(|known| *known == name)
}

/// A counter's value. Counters are whole, never negative and below 2^53, or they are no counters.
fn count(value: f64) -> Option<u64> {
    const LIMIT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (0.0..LIMIT).contains(&value).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn account(page: &str) -> Account {
        read(page.as_bytes(), "10.244.0.2:5353".parse().unwrap(), BootTime(7))
    }

    fn upstream(sample: &ServerSample, address: &str) -> Upstream {
        sample.upstreams.iter().find(|u| u.address == address).cloned().unwrap()
    }

    #[test]
    fn names_since_1_11_are_read() {
        let page = include_str!("../testdata/coredns-1.12.4.txt");
        let Account { sample, errors } = account(page);
        let sample = sample.unwrap();
        assert_eq!(errors, 0);
        assert_eq!(sample.started_unix_secs, 1_795_364_798);
        assert_eq!((sample.requests, sample.panics, sample.all_upstreams_broken), (18, 0, 7));
        assert_eq!(sample.responses, [("NOERROR".to_owned(), 7), ("SERVFAIL".to_owned(), 11)].into());
        let first = upstream(&sample, "127.0.0.1:15399");
        assert_eq!(first.responses, [("NOERROR".to_owned(), 3), ("SERVFAIL".to_owned(), 4)].into());
        assert_eq!(first.healthcheck_failures, 5);
        assert_eq!(upstream(&sample, "127.0.0.2:15399").healthcheck_failures, 9);
    }

    #[test]
    fn names_of_1_7_to_1_10_are_read() {
        let Account { sample, errors } = account(include_str!("../testdata/coredns-1.9.txt"));
        let sample = sample.unwrap();
        assert_eq!(errors, 0);
        assert_eq!((sample.requests, sample.panics, sample.all_upstreams_broken), (321, 2, 4));
        assert_eq!(upstream(&sample, "10.0.0.2:53").responses["SERVFAIL"], 9);
        assert_eq!(upstream(&sample, "10.0.0.2:53").healthcheck_failures, 6);
    }

    #[test]
    fn names_before_1_7_are_read() {
        let Account { sample, errors } = account(include_str!("../testdata/coredns-1.6.txt"));
        let sample = sample.unwrap();
        assert_eq!(errors, 0);
        assert_eq!((sample.requests, sample.panics, sample.all_upstreams_broken), (40, 1, 3));
        assert_eq!(sample.responses["NXDOMAIN"], 12);
        assert_eq!(upstream(&sample, "10.0.0.2:53").responses["NOERROR"], 20);
    }

    #[test]
    fn a_page_with_old_and_new_names_counts_nothing_twice() {
        let page = "coredns_dns_request_count_total 5\ncoredns_dns_requests_total{type=\"A\"} 5\n\
                    coredns_dns_requests_total{type=\"AAAA\"} 2\n";
        assert_eq!(account(page).sample.unwrap().requests, 7);
    }

    #[test]
    fn another_programs_page_is_no_account() {
        assert_eq!(account("go_goroutines 3\nprocess_start_time_seconds 1\n").sample, None);
        let html = account("<html><body>404</body></html>\n");
        assert_eq!((html.sample, html.errors), (None, 1));
    }

    #[test]
    fn values_that_are_no_counts_are_errors() {
        let page = "coredns_panics_total NaN\ncoredns_dns_requests_total -1\ncoredns_dns_requests_total 1e300\n\
                    coredns_dns_requests_total{type=\"A\"} 3\n";
        let account = account(page);
        assert_eq!((account.errors, account.sample.unwrap().requests), (3, 3));
    }

    #[test]
    fn other_proxies_are_no_upstreams_of_forward() {
        let page = "coredns_proxy_request_duration_seconds_count{proxy_name=\"grpc\",rcode=\"NOERROR\",to=\"x\"} 3\n";
        assert_eq!(account(page).sample.unwrap().upstreams, []);
    }

    #[test]
    fn a_page_of_endless_upstreams_is_kept_bounded() {
        let page: String =
            (0..2000).map(|i| format!("coredns_forward_responses_total{{to=\"{i}\"}} 1\n")).collect();
        let account = account(&page);
        assert_eq!((account.sample.unwrap().upstreams.len(), account.errors), (MAX_KEYS, 1488));
    }

    proptest! {
        #[test]
        fn a_cut_page_never_gives_a_wrong_count(cut in 0_usize..20_000) {
            let page = include_str!("../testdata/coredns-1.12.4.txt");
            let cut = cut.min(page.len());
            let whole = account(page).sample.unwrap();
            if let Some(part) = account(&page[..cut]).sample {
                prop_assert!(part.requests == 0 || part.requests == whole.requests);
                prop_assert!(part.responses.iter().all(|(code, n)| *n <= whole.responses[code]));
            }
        }
    }
}
