//! Does the inventory follow a real API server, and are tokens judged as it judges them?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

#[path = "../alertmanager/alert.rs"]
mod alert;
mod alertmanagers;
mod control_plane;
mod inventory;
mod objects;
#[path = "../alertmanager/program.rs"]
mod program;
mod refusals;
mod tokens;
