//! Who may come into the mesh and who watches over it: invites, lines, welcome lines, witnesses.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use tirami_core::{Digest, DocumentId, PublicKey, Trm, decode_body};
use tirami_kernel::Kernel;
use tirami_kernel::mesh::MeshInput;
use tirami_ledger::command::{Command, Outcome};
use tirami_ledger::lattice::{Charter, CharterChange, Enrol, EntryKind, Sponsor};
use tirami_proto::Invite;
use tirami_sdk::types::{
    ApproveCharter, ChainEntry, CharterDraft, Done, EnrolRequest, JoinRequest, MeshCharter,
    MeshInvite, SponsorRequest, WitnessAction, WitnessChange,
};

use super::error::ApiError;
use super::guard::Caller;
use super::wish::party;
use super::{AppState, json};

pub(super) async fn invite(State(app): State<AppState>) -> Result<Response, ApiError> {
    let client = app.mesh.as_ref().ok_or_else(|| {
        conflict(
            "no_mesh",
            "this node opens no port for other nodes; set mesh_enabled = true and start it again",
        )
    })?;
    let invite = client.streams.invite();
    Ok(json::ok(&MeshInvite {
        invite: invite.to_string(),
        mesh_id: invite.mesh.to_string(),
        peers: invite.peers.len() as u64,
        secret: invite.secret.is_some(),
    }))
}

/// Of the node's own mesh, the nodes in the invite are dialled. A book belongs to one mesh for
/// ever, so a node that has one cannot move to another.
pub(super) async fn join(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: JoinRequest = json::read(request, &app.config).await?;
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
        drafts: drafts(kernel).filter_map(|bytes| draft(kernel, &bytes)).collect(),
    }
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
    let asked: WitnessChange = json::read(request, &app.config).await?;
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
    let asked: ApproveCharter = json::read(request, &app.config).await?;
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
    let asked: SponsorRequest = json::read(request, &app.config).await?;
    let newcomer = party("party", &asked.party)?;
    let (checkpoint, most) = app
        .handle
        .read(|kernel, _| {
            let lattice = kernel.ledger().lattice();
            let checkpoint = lattice.last_checkpoint().map(|(_, id, _)| id);
            (checkpoint, lattice.charter().params.welcome)
        })
        .await?;
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

pub(super) async fn enrol(
    State(app): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    let asked: EnrolRequest = json::read(request, &app.config).await?;
    let member = party("party", &asked.party)?;
    let read = |kernel: &Kernel, _| kernel.ledger().lattice().charter().params.line_default;
    let default: Trm = app.handle.read(read).await?;
    let line = asked.line_trm.map_or(default, tirami_sdk::Amount::trm);
    let kind = EntryKind::from(Enrol { party: member, owner: asked.owner, line });
    Ok(json::ok(&signed(&app, caller, kind).await?))
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
