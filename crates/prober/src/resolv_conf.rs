//! Whom does an application on this machine ask, and for which names in turn?
//!
//! /etc/resolv.conf means different things to musl and glibc: caps, line lengths, which options count, and
//! when the search list is used. Nothing is resolved here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use nix::net::if_::if_nametoindex;

use crate::profiles::Profile;

/// What a C library takes from resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The name servers that are asked, three at most, always on port 53.
    pub servers: Vec<SocketAddr>,
    /// The search list, as written.
    pub search: Vec<String>,
    /// Names with fewer dots go through the search list first.
    pub ndots: u32,
    /// Time for an answer.
    pub timeout: Duration,
    /// How often each server is asked.
    pub attempts: u32,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf as this profile's library does. Nothing in it is an error: what a
    /// library does not understand, it passes over.
    pub fn parse(text: &str, profile: &Profile) -> Self {
        let mut conf = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            if profile.is_musl() {
                conf.read_as_musl(line);
            } else {
                conf.read_as_glibc(line);
            }
        }
        if conf.servers.is_empty() {
            conf.servers.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
        }
        conf
    }

    /// The profile with this file's values.
    pub fn apply(&self, profile: Profile) -> Profile {
        profile.with_options(self.timeout, self.attempts)
    }

    fn read_as_musl(&mut self, line: &str) {
        // Its line buffer holds 256 octets with line feed and end; what does not fit is passed over whole.
        if line.len() >= 255 {
            return;
        }
        let Some((keyword, rest)) = split_keyword(line) else { return };
        match keyword {
            "options" => {
                // It looks for the word anywhere in the line, the first time it stands there.
                let number = |word| rest.split_once(word).and_then(|(_, after)| leading_number(after));
                self.ndots = number("ndots:").map_or(self.ndots, |n| n.min(15));
                self.attempts = number("attempts:").map_or(self.attempts, |n| n.min(10));
                self.timeout = number("timeout:").map_or(self.timeout, |n| seconds(n.min(60)));
            }
            "nameserver" => self.add_server(rest),
            "search" | "domain" => {
                // Its search list is a string, and only spaces part it; the last line wins.
                self.search = rest.split_whitespace().map(str::to_owned).collect();
            }
            _ => {}
        }
    }

    fn read_as_glibc(&mut self, line: &str) {
        if line.starts_with([';', '#']) {
            return;
        }
        let Some((keyword, rest)) = split_keyword(line) else { return };
        match keyword {
            "options" => {
                for option in rest.split_whitespace() {
                    let number = |word| option.strip_prefix(word).map(|n| leading_number(n).unwrap_or(0));
                    self.ndots = number("ndots:").map_or(self.ndots, |n| n.min(15));
                    self.attempts = number("attempts:").map_or(self.attempts, |n| n.min(5));
                    self.timeout = number("timeout:").map_or(self.timeout, |n| seconds(n.min(30)));
                }
            }
            "nameserver" => self.add_server(rest),
            "domain" => self.search = rest.split_whitespace().take(1).map(str::to_owned).collect(),
            "search" => self.search = rest.split_whitespace().map(str::to_owned).collect(),
            _ => {}
        }
    }

    fn add_server(&mut self, rest: &str) {
        let word = rest.split_whitespace().next();
        if let Some(address) = word.and_then(address).filter(|_| self.servers.len() < 3) {
            self.servers.push(address);
        }
    }
}

/// The absolute names that a lookup tries, in turn, each with its trailing dot. When a step goes on to the next
/// depends on the answer and the library.
pub fn candidates(profile: &Profile, name: &str, search: &[String], ndots: u32) -> Vec<String> {
    let absolute = format!("{}.", name.trim_end_matches('.'));
    if name.ends_with('.') {
        return vec![absolute];
    }
    let dots = u32::try_from(name.matches('.').count()).unwrap_or(u32::MAX);
    let domains = search.iter().map(|domain| domain.trim_end_matches('.'));
    let searched =
        domains.map(|domain| if domain.is_empty() { absolute.clone() } else { format!("{name}.{domain}.") });
    match (dots >= ndots, profile.is_musl()) {
        (true, true) => vec![absolute],
        (true, false) => [absolute.clone()].into_iter().chain(searched).collect(),
        (false, _) => searched.chain([absolute.clone()]).collect(),
    }
}

/// The keyword at the very start of the line, and what follows the space after it.
fn split_keyword(line: &str) -> Option<(&str, &str)> {
    let (keyword, rest) = line.split_once([' ', '\t'])?;
    Some((keyword, rest.trim()))
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let digits = text.get(..end).filter(|digits| !digits.is_empty())?;
    Some(digits.parse().unwrap_or(u32::MAX))
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

/// An address with port 53; IPv6 may carry a zone, by name or number.
fn address(word: &str) -> Option<SocketAddr> {
    let (plain, zone) = word.split_once('%').map_or((word, None), |(plain, zone)| (plain, Some(zone)));
    match (plain.parse().ok()?, zone) {
        (IpAddr::V4(ip), None) => Some((ip, DNS_PORT).into()),
        (IpAddr::V4(_), Some(_)) => None,
        (IpAddr::V6(ip), None) => Some((ip, DNS_PORT).into()),
        (IpAddr::V6(ip), Some(zone)) => Some(with_zone(ip, zone)?.into()),
    }
}

fn with_zone(ip: Ipv6Addr, zone: &str) -> Option<SocketAddrV6> {
    let index = zone.parse().ok().or_else(|| if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(ip, DNS_PORT, 0, index))
}

const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    const KUBERNETES: &str = "search default.svc.cluster.local svc.cluster.local cluster.local\n\
        nameserver 10.96.0.10\noptions ndots:5\n";

    fn both(text: &str) -> [ResolvConf; 2] {
        [&Profile::MUSL, &Profile::GLIBC].map(|profile| ResolvConf::parse(text, profile))
    }

    #[test]
    fn a_pods_file_is_read_alike() {
        let [musl, glibc] = both(KUBERNETES);
        assert_eq!(musl, glibc);
        assert_eq!(musl.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!((musl.search.len(), musl.ndots, musl.attempts), (3, 5, 2));
    }

    #[test]
    fn an_empty_file_means_localhost() {
        for conf in both("# nothing\n") {
            assert_eq!(conf.servers, ["127.0.0.1:53".parse().unwrap()]);
            assert_eq!((conf.ndots, conf.timeout), (1, Duration::from_secs(5)));
        }
    }

    #[test]
    fn caps_differ() {
        let [musl, glibc] = both("options ndots:99 timeout:99 attempts:99\n");
        assert_eq!((musl.ndots, musl.timeout.as_secs(), musl.attempts), (15, 60, 10));
        assert_eq!((glibc.ndots, glibc.timeout.as_secs(), glibc.attempts), (15, 30, 5));
    }

    #[test]
    fn a_fourth_server_is_never_asked_and_a_name_is_no_server() {
        for conf in both(
            "nameserver dns.lan\nnameserver ::1\nnameserver 1.1.1.1 # x\nnameserver 1.0.0.1\nnameserver 9.9.9.9\n",
        ) {
            let servers: Vec<_> = conf.servers.iter().map(ToString::to_string).collect();
            assert_eq!(servers, ["[::1]:53", "1.1.1.1:53", "1.0.0.1:53"]);
        }
    }

    #[test]
    fn musl_passes_over_a_line_of_256_octets() {
        let line = format!("search {}\n", "a.lan ".repeat(50));
        let [musl, glibc] = both(&line);
        assert_eq!((musl.search.len(), glibc.search.len()), (0, 50));
    }

    #[test]
    fn ndots_sends_glibc_to_the_search_list_later_and_musl_never() {
        let search = ["a.lan".to_owned(), "b.lan".to_owned()];
        let of = |profile, name| candidates(profile, name, &search, 2);
        assert_eq!(of(&Profile::MUSL, "foo.bar"), ["foo.bar.a.lan.", "foo.bar.b.lan.", "foo.bar."]);
        assert_eq!(of(&Profile::GLIBC, "foo.bar"), of(&Profile::MUSL, "foo.bar"));
        assert_eq!(of(&Profile::MUSL, "a.b.c"), ["a.b.c."]);
        assert_eq!(of(&Profile::GLIBC, "a.b.c"), ["a.b.c.", "a.b.c.a.lan.", "a.b.c.b.lan."]);
        assert_eq!(of(&Profile::GLIBC, "foo."), ["foo."]);
    }
}
