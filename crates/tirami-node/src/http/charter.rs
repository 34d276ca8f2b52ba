//! Who may come into the mesh and who watches over it: invites, lines, welcome lines, witnesses.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use tirami_core::{DAY_MS, Digest, DocumentId, PartyId, PublicKey, Timestamp, Trm, decode_body};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::{ADMITTED_MAX, MeshInput};
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::lattice::{
    Change, Charter, CharterChange, Ending, Enrol, EntryKind, Grant, Sponsor,
};
use tirami_proto::Invite;
use tirami_sdk::types::{
    ApproveCharter, ChainEntry, CharterDraft, Done, EnrolRequest, FaucetState, InviteRequest,
    JoinRequest, LastCheckpoint, MeshCharter, MeshInvite, SponsorRequest, WelcomeLine,
    WitnessAction, WitnessChange,
};

use super::error::ApiError;
use super::guard::Caller;
use super::wish::party;
use super::{AppState, json};
use crate::mesh::{INVITE_LIFE_MS, INVITE_USES, Terms};

/// The longest an invite may bring in newcomers: ten years.
const LIFE_MS_MAX: u64 = 10 * 366 * DAY_MS;

pub(super) async fn invite(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked = match request.headers().contains_key(CONTENT_TYPE) {
        true => json::read(request, &app).await?,
        false => InviteRequest::default(),
    };
    let client = app.mesh.as_ref().ok_or_else(|| {
        conflict(
            "no_mesh",
            "this node opens no port for other nodes; set mesh_enabled = true and start it again",
        )
    })?;
    let terms = terms(&app, &asked).await?;
    let (invite, admission) = client.streams.invite(terms).await.map_err(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::server(status, "internal_error", error.to_string())
    })?;
    let left = app.handle.read(move |kernel, now| {
        let charter = kernel.ledger().lattice().charter();
        let counts = charter.registrar == kernel.ledger().party() && admission.expires_at > now;
        let left = admission.enrolled_max.saturating_sub(kernel.enrolled());
        counts.then_some((left, admission.expires_at.ms()))
    });
    let left = left.await?;
    Ok(json::ok(&MeshInvite {
        enrolments_left: left.map_or(0, |(left, _)| left),
        expires_at_ms: left.map(|(_, at)| at),
        invite: invite.to_string(),
        mesh_id: invite.mesh.to_string(),
        peers: invite.peers.len() as u64,
        secret: invite.secret.is_some(),
    }))
}

/// What an invite is good for. A new secret is written down before it is used.
async fn terms(app: &AppState, asked: &InviteRequest) -> Result<Terms, ApiError> {
    let uses = asked.uses.unwrap_or(INVITE_USES);
    if u64::from(uses) > ADMITTED_MAX {
        let most = format!("an invite brings in at most {ADMITTED_MAX} newcomers");
        return Err(ApiError::invalid("uses", most));
    }
    let life_ms = asked.expires_in_s.map_or(INVITE_LIFE_MS, |s| s.saturating_mul(1_000));
    let secret = if asked.renew {
        let keys = app.keys.clone();
        let renewed = tokio::task::spawn_blocking(move || keys.renew_mesh_secret()).await;
        Some(renewed.map_err(|_| key_trouble())?.map_err(|error| {
            tracing::error!(%error, "the mesh's secret cannot be replaced");
            key_trouble()
        })?)
    } else {
        None
    };
    Ok(Terms { uses, life_ms: life_ms.min(LIFE_MS_MAX), secret })
}

fn key_trouble() -> ApiError {
    let message = "the mesh's secret cannot be replaced, and the old one is in force; the node's \
                   log says why";
    ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}

/// Of the node's own mesh, the nodes in the invite are dialled. A book belongs to one mesh for
/// ever, so a node that has one cannot move to another.
pub(super) async fn join(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: JoinRequest = json::read(request, &app).await?;
    let invite: Invite =
        asked.invite.trim().parse().map_err(|error: tirami_proto::InviteError| {
            ApiError::invalid("invite", error.to_string())
        })?;
    if invite.mesh == app.handle.mesh() {
        for peer in invite.peers {
            app.handle.mesh_input(MeshInput::AddPeer(peer)).await?;
        }
        return Ok(json::ok(&Done { ok: true }));
    }
    Err(conflict(
        "join_needs_start",
        "this node has an account book in a mesh of its own, and nothing was changed; stop it, \
         then run: tirami start --join TOKEN --data-dir NEW, with a new directory; the old one \
         stays as it is",
    ))
}

pub(super) async fn charter(State(app): State<AppState>) -> Result<Response, ApiError> {
    Ok(json::ok(&app.handle.read(|kernel, _| shown(kernel)).await?))
}

fn shown(kernel: &Kernel) -> MeshCharter {
    let lattice = kernel.ledger().lattice();
    let charter = lattice.charter();
    MeshCharter {
        mesh_id: lattice.mesh().to_string(),
        name: charter.name.clone(),
        version: charter.version,
        charter_id: lattice.charter_id().to_string(),
        witnesses: witnesses(charter),
        quorum: charter.quorum.into(),
        witnesses_tolerated: charter.witnesses_tolerated() as u64,
        away_tolerated: charter.away_tolerated() as u64,
        clerk: charter.clerk.to_string(),
        registrar: charter.registrar.to_string(),
        line_total_trm: charter.line_total.into(),
        line_default_trm: charter.params.line_default.into(),
        welcome_trm: charter.params.welcome.into(),
        fee_ppm: charter.params.fee_ppm.get(),
        checkpoint: lattice.last_checkpoint().map(|(number, id, at)| LastCheckpoint {
            number,
            entry: id.to_string(),
            at_ms: at.ms(),
        }),
        welcome: welcome(kernel),
        faucet: faucet(kernel),
        drafts: drafts(kernel).filter_map(|bytes| draft(kernel, &bytes)).collect(),
    }
}

/// The node's welcome line, or its search for one.
fn welcome(kernel: &Kernel) -> Option<WelcomeLine> {
    let (own, lattice) = (kernel.ledger().party(), kernel.ledger().lattice());
    let mesh = kernel.mesh();
    if let Some(welcome) = lattice.welcome(own) {
        let state = match welcome.end {
            Some((Ending::Defaulted { .. }, _)) => "defaulted",
            Some((Ending::Settled, _)) => "settled",
            None if welcome.settle.is_some() => "settled",
            None => "open",
        };
        return Some(WelcomeLine {
            state: state.to_owned(),
            amount_trm: welcome.amount.into(),
            sponsor: Some(welcome.sponsor.to_string()),
            deadline_ms: welcome.deadline.map(Timestamp::ms),
            refused: None,
        });
    }
    let (asked, refused) = (mesh.asks_sponsor(), mesh.sponsor_refused());
    let searches = lattice.chain(own).is_none() && (asked.is_some() || refused.is_some());
    searches.then(|| WelcomeLine {
        state: "searching".to_owned(),
        amount_trm: lattice.charter().params.welcome.into(),
        sponsor: asked.map(|party| party.to_string()),
        deadline_ms: None,
        refused: refused.map(|(_, reason)| reason.to_owned()),
    })
}

fn faucet(kernel: &Kernel) -> Option<FaucetState> {
    let faucet = kernel.mesh().settings().faucet?;
    let welcome = kernel.ledger().lattice().charter().params.welcome;
    Some(FaucetState {
        amount_trm: faucet.amount.min(welcome).into(),
        given_trm: kernel.ledger().book().faucet_given(kernel.clock()).into(),
        day_max_trm: faucet.bounds.day_max.into(),
        work_bits: faucet.work_bits,
    })
}

fn witnesses(charter: &Charter) -> Vec<String> {
    charter.witnesses.iter().map(|witness| witness.party().to_string()).collect()
}

/// Successors of the charter in force: those nobody approved yet, and those on their way.
fn drafts(kernel: &Kernel) -> impl Iterator<Item = Vec<u8>> {
    let approved = kernel.ledger().lattice().proposals().map(|(_, bytes, _)| bytes.to_vec());
    let mut all: Vec<Vec<u8>> = approved.collect();
    for bytes in kernel.mesh().charter_drafts() {
        if !all.iter().any(|known| known == bytes) {
            all.push(bytes.to_vec());
        }
    }
    all.into_iter()
}

fn draft(kernel: &Kernel, bytes: &[u8]) -> Option<CharterDraft> {
    let next: Charter = decode_body(bytes).ok()?;
    let lattice = kernel.ledger().lattice();
    let known = lattice.proposals().find(|(_, known, _)| *known == bytes);
    let approved: Vec<PublicKey> =
        known.map(|(_, _, list)| list.map(|one| one.witness).collect()).unwrap_or_default();
    let in_force = lattice.charter().version >= next.version;
    let needed = u32::from(lattice.charter().quorum);
    let own = kernel.ledger().party();
    Some(CharterDraft {
        draft: Digest::of(bytes).to_string(),
        version: next.version,
        witnesses: witnesses(&next),
        quorum: next.quorum.into(),
        witnesses_tolerated: next.witnesses_tolerated() as u64,
        away_tolerated: next.away_tolerated() as u64,
        approvals: u32::try_from(approved.len()).unwrap_or(u32::MAX),
        approvals_needed: needed,
        approved_here: in_force || approved.iter().any(|witness| witness.party() == own),
        in_force,
    })
}

pub(super) async fn change_witnesses(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: WitnessChange = json::read(request, &app).await?;
    let witness = party("party", &asked.party)?;
    let read = move |kernel: &Kernel, _| {
        let lattice = kernel.ledger().lattice();
        let known = lattice.chain(witness).is_some();
        (lattice.charter().witnesses.clone(), known)
    };
    let (mut witnesses, is_member) = app.handle.read(read).await?;
    let is_witness = witnesses.iter().any(|known| known.party() == witness);
    match asked.action {
        WitnessAction::Add if is_witness => {
            return Err(conflict("is_witness", "this node is a witness of the mesh already"));
        }
        // An unknown key could never acknowledge anything.
        WitnessAction::Add if !is_member => {
            let message = "this node is no member of the mesh; let it join first";
            return Err(ApiError::not_found("unknown_party", message));
        }
        WitnessAction::Add => witnesses.push(PublicKey::from(witness)),
        WitnessAction::Remove if !is_witness => {
            let message = "this node is no witness of the mesh";
            return Err(ApiError::not_found("unknown_witness", message));
        }
        WitnessAction::Remove if witnesses.len() == 1 => {
            let message = "a mesh needs a witness; add another one before removing the last";
            return Err(conflict("last_witness", message));
        }
        WitnessAction::Remove => witnesses.retain(|known| known.party() != witness),
    }
    let change = CharterChange { witnesses: Some(witnesses), ..CharterChange::default() };
    decided(&app, caller, Command::ProposeCharter(Box::new(change))).await
}

pub(super) async fn approve(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: ApproveCharter = json::read(request, &app).await?;
    let unknown = || {
        let message = "there is no such draft; `tirami mesh` lists those there are";
        ApiError::not_found("unknown_draft", message)
    };
    let named: Digest = asked.draft.parse().map_err(|_| unknown())?;
    let found =
        app.handle.read(move |kernel, _| drafts(kernel).find(|bytes| Digest::of(bytes) == named));
    let bytes = found.await?.ok_or_else(unknown)?;
    decided(&app, caller, Command::ApproveCharter { bytes }).await
}

async fn decided(app: &AppState, caller: Caller, command: Command) -> Result<Response, ApiError> {
    let outcome = app.handle.submit(caller.actor(), command).await?;
    let Outcome::Charter { bytes, .. } = outcome else { return Err(unexpected()) };
    let shown = app.handle.read(move |kernel, _| draft(kernel, &bytes)).await?;
    shown.map(|draft| json::ok(&draft)).ok_or_else(unexpected)
}

pub(super) async fn sponsor(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: SponsorRequest = json::read(request, &app).await?;
    let newcomer = party("party", &asked.party)?;
    let (has_line, checkpoint, most) = app
        .handle
        .read(move |kernel, _| {
            let lattice = kernel.ledger().lattice();
            let checkpoint = lattice.last_checkpoint().map(|(_, id, _)| id);
            (needs_no_line(kernel, newcomer), checkpoint, lattice.charter().params.welcome)
        })
        .await?;
    if has_line {
        return Err(conflict(
            "has_line",
            "the party has a line already, or began its chain without one; nothing was locked",
        )
        .param("party"));
    }
    let checkpoint = checkpoint.ok_or_else(|| {
        conflict(
            "no_checkpoint",
            "the mesh has no checkpoint yet, from which the newcomer's time is counted; one \
             comes every few minutes while there is trade; try again then",
        )
    })?;
    let amount = asked.amount_trm.map_or(most, tirami_sdk::Amount::trm);
    let kind = EntryKind::from(Sponsor { newcomer, amount, checkpoint });
    Ok(json::ok(&signed(&app, caller, kind).await?))
}

/// Whether a welcome line would lock money for nothing: only who has not begun takes one, and one.
fn needs_no_line(kernel: &Kernel, newcomer: PartyId) -> bool {
    let lattice = kernel.ledger().lattice();
    let is_open = |lock| lattice.welcome_of(lock).is_some_and(|welcome| !welcome.returned);
    let mut grants = lattice.grants(newcomer);
    let mut pending = lattice.pending_of(kernel.ledger().party());
    kernel.is_enrolled(newcomer)
        || lattice.chain(newcomer).is_some()
        || grants.any(|(id, grant)| matches!(grant, Grant::Welcome { .. }) && is_open(id))
        || pending.any(|pending| match pending.effect().change {
            Change::Sponsored { newcomer: of, .. } => of == newcomer,
            _ => false,
        })
}

pub(super) async fn enrol(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: EnrolRequest = json::read(request, &app).await?;
    let member = party("party", &asked.party)?;
    let read = |kernel: &Kernel, _| kernel.ledger().lattice().charter().params.line_default;
    let default: Trm = app.handle.read(read).await?;
    let line = asked.line_trm.map_or(default, tirami_sdk::Amount::trm);
    let kind = EntryKind::from(Enrol { party: member, owner: asked.owner, line });
    let read = move |kernel: &Kernel, _| kernel.is_enrolled(member);
    let was_enrolled = app.handle.read(read).await?;
    let entry = signed(&app, caller, kind).await?;
    if let Some(client) = app.mesh.as_ref().filter(|_| !was_enrolled)
        && let Err(error) = client.streams.enrolled_by_hand().await
    {
        tracing::error!(%error, "an enrolment by hand took a use from the invites");
    }
    Ok(json::ok(&entry))
}

async fn signed(app: &AppState, caller: Caller, kind: EntryKind) -> Result<ChainEntry, ApiError> {
    let outcome = app.handle.submit(caller.actor(), Command::SignEntry { kind }).await?;
    let Outcome::Entry { entry, .. } = outcome else { return Err(unexpected()) };
    entry_view(app, entry, false).await
}

/// An entry of this node's chain as it stands now.
pub(super) async fn entry_view(
    app: &AppState,
    entry: DocumentId,
    repeated: bool,
) -> Result<ChainEntry, ApiError> {
    let read = move |kernel: &Kernel, _| kernel.ledger().lattice().final_entry(entry).is_some();
    let is_final = app.handle.read(read).await?;
    Ok(ChainEntry { entry: entry.to_string(), is_final, repeated })
}

pub(super) fn conflict(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "conflict_error", code, message)
}

pub(super) fn unexpected() -> ApiError {
    let message = "the node did something else than was asked; its log says what";
    ApiError::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}
