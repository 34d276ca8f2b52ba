//! `tirami mesh`: the mesh this node is in, who may come in, and who watches over it.

use clap::{Args, Subcommand};
use serde_json::json;
use tirami_sdk::types::{
    ChainEntry, CharterDraft, EnrolRequest, InviteRequest, MeshCharter, SponsorRequest,
    WitnessAction,
};
use tirami_sdk::{Amount, Client};

use super::keys::Span;
use crate::client::{Need, connect};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::settings::Global;

/// What to do with the mesh.
#[derive(Debug, Args)]
pub(crate) struct MeshArgs {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show members, witnesses and what is under way; also without a word.
    Status,
    /// Print the word with which other machines join, alone on the last line.
    Invite(InviteArgs),
    /// Add or remove a witness.
    Witness {
        #[command(subcommand)]
        change: Change,
    },
    /// Approve a draft of the next charter as a witness; there is no way back.
    Approve {
        /// The draft, as `tirami mesh` names it.
        draft: String,
        /// Do it; without this flag the draft is only shown.
        #[arg(long)]
        yes: bool,
    },
    /// Lend a newcomer a welcome line out of this node's own money.
    Sponsor {
        /// The newcomer.
        party: String,
        /// How much [default: the most that the charter allows].
        #[arg(long, value_name = "TRM")]
        amount: Option<Amount>,
        /// Do it, although this node has never seen the newcomer.
        #[arg(long)]
        yes: bool,
    },
    /// Grant a member a line, as the mesh's registrar.
    Enrol {
        /// The member.
        party: String,
        /// Whom it belongs to, for people.
        #[arg(long, value_name = "NAME", default_value = "")]
        owner: String,
        /// How far below zero it may go [default: the charter's].
        #[arg(long, value_name = "TRM")]
        line: Option<Amount>,
    },
}

#[derive(Debug, Args)]
struct InviteArgs {
    /// How many newcomers get a line by it, counted by the registrar [default: 8].
    #[arg(long, value_name = "N")]
    uses: Option<u32>,
    /// For how long, such as 12h or 30d [default: 7d].
    #[arg(long, value_name = "TIME")]
    expires: Option<Span>,
    /// Replace the mesh's secret first: this node then lets in nobody by an earlier invite.
    #[arg(long)]
    renew: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// From the next charter on it acknowledges entries.
    Add(Witness),
    /// From the next charter on it no longer does.
    Remove(Witness),
}

#[derive(Debug, Args)]
struct Witness {
    /// The witness.
    party: String,
    /// Do it, although a witness cannot take its approval back.
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: MeshArgs, out: Output) -> Result<Exit, Failure> {
    let need = match &args.action {
        None | Some(Action::Status) => Need::Personal,
        Some(_) => Need::Owner,
    };
    let client = connect(global, need).await?;
    match args.action {
        None | Some(Action::Status) => status(&client, out).await,
        Some(Action::Invite(args)) => invite(&client, args, out).await,
        Some(Action::Witness { change }) => {
            let (action, witness) = match change {
                Change::Add(witness) => (WitnessAction::Add, witness),
                Change::Remove(witness) => (WitnessAction::Remove, witness),
            };
            witness.change(&client, action, out).await
        }
        Some(Action::Approve { draft, yes }) => approve(&client, &draft, yes, out).await,
        Some(Action::Sponsor { party, amount, yes }) => {
            let request = SponsorRequest { party, amount_trm: amount };
            sponsor(&client, &request, yes, out).await
        }
        Some(Action::Enrol { party, owner, line }) => {
            let request = EnrolRequest { party, owner, line_trm: line };
            signed(&client.enrol(&request).await?, out);
            Ok(Exit::Done)
        }
    }
}

async fn sponsor(
    client: &Client,
    request: &SponsorRequest,
    yes: bool,
    out: Output,
) -> Result<Exit, Failure> {
    let known = client.topology().await?.nodes;
    if !yes && !known.iter().any(|node| node.node_id == request.party) {
        return Err(Failure::usage(
            "nothing was locked: this node has never seen that party, and money for one that does \
             not come is locked for nothing; look at it again, then repeat the command with --yes",
        ));
    }
    let most = client.mesh_charter().await?.welcome_trm;
    let entry = client.sponsor(request).await?;
    signed(&entry, out);
    out.note(format_args!(
        "{} TRM of this node's are locked until the newcomer settles, at the latest until 72 hours \
         after it began; `tirami status` shows what is left",
        request.amount_trm.unwrap_or(most)
    ));
    Ok(Exit::Done)
}

async fn invite(client: &Client, args: InviteArgs, out: Output) -> Result<Exit, Failure> {
    let request = InviteRequest {
        uses: args.uses,
        expires_in_s: args.expires.map(|span| span.ms() / 1_000),
        renew: args.renew,
    };
    let invite = client.mesh_invite(&request).await?;
    if invite.secret {
        out.note("whoever has this word is let into the mesh; hand it over in private");
        match invite.expires_at_ms {
            Some(at) => out.note(format_args!(
                "until {} UTC, {} newcomers get a line by it or an earlier one",
                output::moment(at),
                invite.enrolments_left
            )),
            None => out.note(
                "newcomers get a line only while the registrar's node has invites of its own left",
            ),
        }
    }
    out.answer(&invite, |out| out.line(&invite.invite));
    Ok(Exit::Done)
}

async fn status(client: &Client, out: Output) -> Result<Exit, Failure> {
    let network = client.network().await?;
    let charter = client.mesh_charter().await?;
    let answer = json!({"network": network, "charter": charter});
    out.answer(&answer, |out| {
        out.pairs(&[
            ("mesh", format!("{} ({})", charter.name, network.mesh_id)),
            ("node", network.node_id.clone()),
            ("members", network.total_nodes.to_string()),
            ("connected", network.peers.to_string()),
            ("serving now", network.providers.to_string()),
            ("charter", format!("version {}", charter.version)),
            ("witnesses", watch(&charter)),
            ("welcome line", welcome(&charter)),
            ("faucet", faucet(&charter)),
            ("final entries", network.entries_final.to_string()),
            ("not final here", network.entries_pending.to_string()),
            ("entries behind", network.entries_behind.to_string()),
            ("behind for", format!("{:.1} s", network.lag_ms as f64 / 1e3)),
            ("sums agree", if network.conserved { "yes" } else { "NO" }.to_owned()),
            ("state", network.lattice_state_hash.clone()),
        ]);
        for draft in &charter.drafts {
            out.line("");
            show(draft, out);
        }
    });
    Ok(Exit::Done)
}

fn welcome(charter: &MeshCharter) -> String {
    let Some(line) = &charter.welcome else { return "none".to_owned() };
    let mut text = format!("{}, {} TRM", line.state, line.amount_trm);
    if let Some(sponsor) = &line.sponsor {
        text.push_str(&format!(", {}", output::short(sponsor)));
    }
    if let Some(refused) = &line.refused {
        text.push_str(&format!(" ({refused})"));
    }
    text
}

fn faucet(charter: &MeshCharter) -> String {
    match &charter.faucet {
        Some(open) => format!(
            "{} TRM for a newcomer; {} of {} TRM given today",
            open.amount_trm, open.given_trm, open.day_max_trm
        ),
        None => "shut".to_owned(),
    }
}

fn watch(charter: &MeshCharter) -> String {
    let names: Vec<String> = charter.witnesses.iter().map(|name| output::short(name)).collect();
    format!(
        "{} of {} ({}); {}",
        charter.quorum,
        charter.witnesses.len(),
        names.join(", "),
        tolerance(charter.witnesses_tolerated, charter.away_tolerated)
    )
}

/// How many witnesses may be dishonest, and how many silent, without harm.
pub(super) fn tolerance(may_lie: u64, may_be_away: u64) -> String {
    format!("{may_lie} may lie, {may_be_away} may be away")
}

fn show(draft: &CharterDraft, out: Output) {
    let names: Vec<String> = draft.witnesses.iter().map(|name| output::short(name)).collect();
    let state = if draft.in_force {
        "in force".to_owned()
    } else {
        format!("{} of {} approvals", draft.approvals, draft.approvals_needed)
    };
    out.pairs(&[
        ("draft", draft.draft.clone()),
        ("charter", format!("version {}", draft.version)),
        ("witnesses", format!("{} of {} ({})", draft.quorum, names.len(), names.join(", "))),
        ("may lie", draft.witnesses_tolerated.to_string()),
        ("may be away", draft.away_tolerated.to_string()),
        ("state", state),
    ]);
}

/// What an approval means, before it is given.
const NO_WAY_BACK: &str = "a witness signs one successor of the charter and acknowledges nothing \
                           until it is in force; this cannot be taken back";

impl Witness {
    async fn change(
        self,
        client: &Client,
        action: WitnessAction,
        out: Output,
    ) -> Result<Exit, Failure> {
        let charter = client.mesh_charter().await?;
        let node = client.network().await?.node_id;
        // Whoever is no witness only drafts.
        if charter.witnesses.contains(&node) {
            out.warn(NO_WAY_BACK);
            if !self.yes {
                return Err(Failure::usage(
                    "nothing was changed; repeat the command with --yes to draft the change and \
                     approve it as a witness",
                ));
            }
        }
        let draft = client.change_witnesses(action, &self.party).await?;
        out.answer(&draft, |out| show(&draft, out));
        if !draft.in_force {
            out.note(format_args!(
                "it comes into force when {} of the witnesses have approved it: tirami mesh \
                 approve {}",
                draft.approvals_needed, draft.draft
            ));
        }
        Ok(Exit::Done)
    }
}

async fn approve(client: &Client, draft: &str, yes: bool, out: Output) -> Result<Exit, Failure> {
    out.warn(NO_WAY_BACK);
    if !yes {
        let charter = client.mesh_charter().await?;
        if let Some(found) = charter.drafts.iter().find(|found| found.draft == draft) {
            out.answer(found, |out| show(found, out));
        }
        return Err(Failure::usage("nothing was approved; repeat the command with --yes"));
    }
    let approved = client.approve_charter(draft).await?;
    out.answer(&approved, |out| show(&approved, out));
    Ok(Exit::Done)
}

/// Shows an entry that was signed.
pub(super) fn signed(entry: &ChainEntry, out: Output) {
    out.answer(entry, |out| {
        let state = if entry.is_final {
            "final"
        } else {
            "signed; it is final when enough witnesses have acknowledged it"
        };
        out.pairs(&[("entry", entry.entry.clone()), ("state", state.to_owned())]);
    });
    if entry.repeated {
        out.note("this was done by an earlier request with the same key; nothing was paid again");
    }
}
