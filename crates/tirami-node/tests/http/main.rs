//! The HTTP interface of real nodes with a scripted engine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod bounds;
mod chat;
mod completions;
mod deadline;
mod economy;
mod embeddings;
mod gates;
mod load;
mod malformed;
mod messages;
mod models;
mod openai;
mod order;
mod origins;
mod quote;
mod random_tools;
mod responses;
mod scopes;
mod slow;
mod support;
mod tokens;
mod tools;
mod usage;
mod variables;
