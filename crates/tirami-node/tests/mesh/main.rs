//! Real nodes with scripted engines, connected over QUIC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod blame;
mod busy;
mod cheats;
mod deadline;
mod doors;
mod elsewhere;
mod embeddings;
mod engines;
mod failover;
mod finding;
mod flood;
mod forms;
mod http;
mod jobs;
mod jobs_support;
mod kept;
mod models;
mod nodes;
mod orders;
mod owner;
mod places;
mod raw;
mod relay;
mod rivals;
mod schedule;
mod settling;
mod signals;
mod support;
mod talk;
mod welcome;
