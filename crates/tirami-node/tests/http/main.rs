//! The HTTP interface of real nodes with a scripted engine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod bounds;
mod chat;
mod economy;
mod gates;
mod load;
mod models;
mod quote;
mod scopes;
mod support;
mod tools;
