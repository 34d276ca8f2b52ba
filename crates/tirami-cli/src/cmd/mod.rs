//! The commands, one file each.

pub(crate) mod account;
pub(crate) mod agents;
pub(crate) mod approve;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod estimate;
pub(crate) mod find;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod kill;
pub(crate) mod limits;
pub(crate) mod mesh;
pub(crate) mod models;
pub(crate) mod peers;
pub(crate) mod policy;
pub(crate) mod serving;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod trades;
pub(crate) mod transfer;
