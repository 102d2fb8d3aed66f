//! What can go wrong in a lab, and who can mend it?

use std::path::PathBuf;

/// Why a step of the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces, rules and conntrack need root.
    #[error("the lab needs root: run it with sudo")]
    NeedsRoot,
    /// The machine can't carry a cluster, or not the one that was asked for.
    #[error("a cluster can't be raised here: {missing}")]
    Machine {
        /// All that is missing or wrong.
        missing: String,
    },
    /// No lab of this name has been raised, or it is gone.
    #[error("there is no lab named {name} (is it up? `lab up --name {name}`)")]
    NoSuchLab {
        /// The name asked for.
        name: String,
    },
    /// A lab of this name stands already.
    #[error(
        "a lab named {name} is up already (take it down with `lab down --name {name}`, or choose another name)"
    )]
    AlreadyUp {
        /// The name asked for.
        name: String,
    },
    /// A lab's name goes into file names and names of namespaces.
    #[error("{name:?} can't be a lab's name: 1 to 40 of a-z, 0-9 and '-'")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// A name that the site does not have.
    #[error("the site has no {kind} named {name} (it has: {known})")]
    NoSuch {
        /// "pod", "server", "node".
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A file could not be read, written or removed.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried: "write", "read".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A file has other content than the lab writes.
    #[error("{path} is not what the lab wrote: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// An external program is missing.
    #[error("can't run {program}: {source} (is it installed? `make setup` installs what the lab uses)")]
    Spawn {
        /// The program.
        program: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// An external program said no.
    #[error("{command} failed ({status}): {output}")]
    Command {
        /// The command line, shortened.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The distribution has another version than the lab was made for.
    #[error(
        "{package}: wanted version {wanted}, the distribution has {found} (the lab is made for Debian 12)"
    )]
    WrongVersion {
        /// The package.
        package: String,
        /// What the lab was made for.
        wanted: String,
        /// The file that was fetched.
        found: String,
    },
    /// Something did not become ready before its deadline.
    #[error("{what} was not ready after {seconds} s: {last}\n{log}")]
    NotReady {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// The last answer.
        last: String,
        /// The end of its log.
        log: String,
    },
    /// A process that should run does not.
    #[error("{name} is not running\n{log}")]
    NotRunning {
        /// Whose process.
        name: String,
        /// The end of its log.
        log: String,
    },
    /// A network namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps a file error with its path.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// Wraps a system error with what was tried.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
