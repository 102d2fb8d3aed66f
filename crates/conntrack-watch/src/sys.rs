//! How does a file descriptor wake this task?
//!
//! The only unsafe code of this crate: tokio asks for a promise that safe types can't express.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an owned descriptor with the runtime, for reading.
pub fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the caller hands over a value that owns its descriptor (`AsFd` borrows from it, so it stays open for the
    // value's life), and AsyncFd keeps that value, unchanged, until it has deregistered.
    unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }.map_err(Into::into)
}
