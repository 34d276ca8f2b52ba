//! What a start makes of the accounts, each step durable before the next.

use std::path::Path;
use std::time::Duration;

use tirami_core::{AgentId, Digest, ModelShape, Ppm, Trm};
use tirami_kernel::Kernel;
use tirami_ledger::Rejection;
use tirami_ledger::book::{
    KeyId, Limits, Scope, Target, answer_cost, default_limits, founder_line,
};
use tirami_ledger::command::{Actor, Command};

use super::StartError;
use crate::config::Config;
use crate::handle::{Handle, SubmitError};
use crate::keys::{self, ApiKeyText};
use crate::owner::has_price_floor;

/// The name of the personal agent's account.
const PERSONAL_NAME: &str = "personal";
/// The label of the admin API key in the data directory.
const ADMIN_LABEL: &str = "admin, from the data directory";
/// How often a newcomer looks whether it has a line yet.
const MEMBER_LOOK_EVERY: Duration = Duration::from_millis(500);

/// The steps of a start that go through the ledger.
pub(super) struct Accounts {
    pub(super) handle: Handle,
    pub(super) personal: AgentId,
    pub(super) shape: ModelShape,
    pub(super) price: Ppm,
}

/// What the ledger already has.
struct Standing {
    price: Ppm,
    line_total: Trm,
    has_chain: bool,
    /// Whether this node founded its mesh, and so gives itself its line.
    is_founder: bool,
    has_agent: bool,
    /// Whether an earlier start got as far as the admin key, its last step.
    is_prepared: bool,
}

impl Accounts {
    /// Ends what the last run left open, then makes what is missing of chain, personal agent and
    /// limits, and fills the agent's account. `false` when the chain is still to come: in a mesh of
    /// others somebody has to give this node its line first.
    pub(super) async fn prepare(&self, config: &Config) -> Result<bool, SubmitError> {
        self.submit(Command::Recover).await?;
        let personal = self.personal;
        let standing = self
            .handle
            .read(move |kernel, _| {
                let (ledger, book) = (kernel.ledger(), kernel.ledger().book());
                Standing {
                    price: book.price(),
                    line_total: ledger.lattice().charter().line_total,
                    has_chain: ledger.lattice().chain(ledger.party()).is_some(),
                    is_founder: ledger.lattice().charter().registrar == ledger.party(),
                    has_agent: book.agents().contains_key(&personal),
                    is_prepared: !book.keys().is_empty(),
                }
            })
            .await?;
        // What the electricity costs is found anew; until then the price of before stays.
        let is_floor = standing.is_prepared && has_price_floor(config);
        if standing.price < self.price || (standing.price > self.price && !is_floor) {
            self.submit(Command::SetPrice { price: self.price }).await?;
        }
        if !standing.has_chain && standing.is_founder {
            // A start that was killed may have founded the mesh for a smaller model.
            let line = founder_line(&self.shape, self.price).min(standing.line_total);
            self.submit(Command::OpenChain { line }).await?;
        }
        if !standing.has_agent {
            let name = PERSONAL_NAME.to_owned();
            self.submit(Command::CreateAgent { agent: personal, name }).await?;
        }
        if !standing.is_prepared {
            let limits = default_limits(&self.shape, self.price);
            for target in [Target::Node, Target::Agent(personal)] {
                self.submit(Command::SetLimits { target, limits }).await?;
            }
        }
        self.fill(config.personal_agent_answers).await?;
        Ok(standing.has_chain || standing.is_founder)
    }

    /// Fills the personal agent's account up to `answers` when less than a tenth of that is left,
    /// with at most half of what the node can give. While the kill switch is on nothing moves.
    async fn fill(&self, answers: u32) -> Result<(), SubmitError> {
        let agent = self.personal;
        let answer = answer_cost(&self.shape, self.price).micro();
        let wanted = Trm::from_micro(answer.saturating_mul(answers.into()));
        let (has, half, is_frozen) = self
            .handle
            .read(move |kernel, _| {
                let ledger = kernel.ledger();
                let account = ledger.book().agents().get(&agent);
                let has = account.map_or(Trm::ZERO, |account| account.balance());
                let half = Trm::from_micro(ledger.fundable().micro() / 2);
                (has, half, ledger.book().kill().is_some())
            })
            .await?;
        let amount = wanted.saturating_sub(has).min(half);
        let is_low = has.micro() < wanted.micro() / 10;
        if is_low && !is_frozen && !amount.is_zero() {
            self.submit(Command::FundAgent { agent, amount }).await?;
        }
        Ok(())
    }

    /// In a mesh that others founded: fills the account once this node has a chain there.
    pub(super) async fn fill_when_member(self, answers: u32) {
        loop {
            let member = |kernel: &Kernel, _| {
                let ledger = kernel.ledger();
                (ledger.lattice().chain(ledger.party()).is_some(), !ledger.fundable().is_zero())
            };
            match self.handle.read(member).await {
                Ok((true, true)) => break,
                Ok(_) | Err(SubmitError::Busy) => tokio::time::sleep(MEMBER_LOOK_EVERY).await,
                Err(_) => return,
            }
        }
        if let Err(error) = self.fill(answers).await {
            tracing::warn!(%error, "the personal agent's account was not filled");
        }
    }

    /// Makes the admin API key: first its file, synced, then its record. A file that was removed
    /// is replaced by a new key; whoever owns the directory owns the node.
    pub(super) async fn admin_key(&self, data_dir: &Path) -> Result<(), StartError> {
        let ApiKeyText { key, text } = match keys::read_api_key(data_dir)? {
            Some(text) => {
                let path = keys::api_key_path(data_dir);
                let key = key_id(&text).ok_or(StartError::ApiKeyFile { path })?;
                ApiKeyText { key, text }
            }
            None => {
                let drawn = keys::new_api_key()?;
                keys::write_api_key(data_dir, &drawn.text)?;
                drawn
            }
        };
        let known = move |kernel: &Kernel, _| kernel.ledger().book().keys().contains_key(&key);
        if self.handle.read(known).await? {
            return Ok(());
        }
        let create = Command::CreateKey {
            key,
            secret: Digest::of(text.as_bytes()),
            label: ADMIN_LABEL.to_owned(),
            scope: Scope::Admin,
            agent: Some(self.personal),
            limits: Limits::default(),
            expires_at: None,
        };
        Ok(self.submit(create).await?)
    }

    async fn submit(&self, command: Command) -> Result<(), SubmitError> {
        match self.handle.submit(Actor::Node, command).await {
            // The chain of a start that was killed just here.
            Ok(_) | Err(SubmitError::Rejected(Rejection::Exists { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The public name in an API key's text.
fn key_id(text: &str) -> Option<KeyId> {
    let (name, secret) = text.strip_prefix("tirami_")?.split_once('_')?;
    let well_formed = name.len() == 8 && secret.len() == 43;
    name.parse().ok().filter(|_| well_formed)
}
