//! Real nodes with scripted engines, connected over QUIC on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod blame;
mod busy;
mod cheats;
mod deadline;
mod doors;
mod doubted;
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
mod moved;
mod nodes;
mod orders;
mod owner;
mod places;
mod raw;
mod relay;
mod rivals;
mod schedule;
mod scored;
mod settling;
mod short;
mod signals;
mod support;
mod talk;
mod together;
mod variables;
mod welcome;
