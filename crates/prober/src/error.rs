//! Why can a lookup not even be tried? What the network does to a lookup is evidence, never an error.

use nix::errno::Errno;

/// A lookup that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name can't stand in a DNS query.
    #[error("{name:?} is no domain name that can be asked for: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No server to ask.
    #[error("there is no name server to ask")]
    NoServer,
    /// The network namespace can't be used.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// The kernel refused a socket.
    #[error(
        "can't {step} a socket for lookups: {errno} (has the process reached its limit of open files, or may it not use the network?)"
    )]
    Socket {
        /// What was being done: "open", "configure", "bind".
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// The runtime can't watch the socket.
    #[error("can't watch a socket for answers: {0}")]
    Watch(#[source] std::io::Error),
}
