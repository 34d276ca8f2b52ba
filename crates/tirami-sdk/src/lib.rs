//! Tirami's HTTP contract: every route, every request and answer type, and a typed async client.
//!
//! The server builds its router from [`endpoints::Operation::ALL`], the OpenAPI document is
//! written from the same table, and [`Client`] has one method for each row.
//!
//! # Examples
//!
//! ```no_run
//! # async fn run() -> Result<(), tirami_sdk::ClientError> {
//! use tirami_sdk::{Client, types::ChatRequest};
//!
//! let client = Client::new("http://127.0.0.1:3000", None)?;
//! let answer = client.chat(&ChatRequest::new("smollm2:135m").user("What is a FLOP?")).await?;
//! println!("{}", answer.text());
//! if let Some(tirami) = answer.x_tirami {
//!     println!("{} TRM, {} left", tirami.trm_cost, tirami.effective_balance);
//! }
//! # Ok(())
//! # }
//! ```

mod client;
pub mod endpoints;
mod error;
pub mod money;
pub mod openapi;
mod stream;
pub mod types;
pub mod upstream;
mod verify;

pub use client::Client;
pub use error::{ClientError, Refusal};
pub use money::{Amount, SignedAmount};
pub use stream::{ChatStream, EVENT_BYTES_MAX};
pub use verify::{TradeProof, VerifyError, verify_trade};
