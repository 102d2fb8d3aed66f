//! How does one netfilter rule of a fault go into a namespace and out again?

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, command};

/// A rule at the head of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    netns: PathBuf,
    program: String,
    table: String,
    chain: String,
    words: Vec<String>,
}

impl Rule {
    /// An IPv4 rule; `words` are separated by single spaces.
    pub fn v4(netns: &Path, table: &str, chain: &str, words: &str) -> Self {
        Self::of("iptables", netns, table, chain, words)
    }

    /// An IPv6 rule.
    pub fn v6(netns: &Path, table: &str, chain: &str, words: &str) -> Self {
        Self::of("ip6tables", netns, table, chain, words)
    }

    /// Puts it before all others of its chain.
    pub fn insert(&self) -> Result<(), Error> {
        command::run(&mut self.command("-I"), None).map(drop)
    }

    /// Deletes it, if it is there.
    pub fn delete(&self) -> Result<(), Error> {
        let there = command::output(&mut self.command("-C"), None)?.status.success();
        if there { command::run(&mut self.command("-D"), None).map(drop) } else { Ok(()) }
    }

    fn of(program: &str, netns: &Path, table: &str, chain: &str, words: &str) -> Self {
        Self {
            netns: netns.to_owned(),
            program: program.to_owned(),
            table: table.to_owned(),
            chain: chain.to_owned(),
            words: words.split(' ').map(str::to_owned).collect(),
        }
    }

    fn command(&self, action: &str) -> std::process::Command {
        let mut command = command::inside(&self.netns, &self.program);
        command.args(["-w", "-t", &self.table, action, &self.chain]).args(&self.words);
        command
    }
}

/// The DNS ports of a site: 53 and, where they differ, the one after DNAT.
pub fn dns_ports(target_port: u16) -> String {
    if target_port == 53 { "53".to_owned() } else { format!("53,{target_port}") }
}
