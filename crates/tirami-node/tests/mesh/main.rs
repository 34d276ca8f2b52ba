//! Real nodes with scripted engines, connected over QUIC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod cheats;
mod doors;
mod engines;
mod failover;
mod http;
mod jobs;
mod jobs_support;
mod models;
mod nodes;
mod owner;
mod raw;
mod rivals;
mod schedule;
mod support;
mod welcome;
