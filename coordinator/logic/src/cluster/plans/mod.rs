//! Plans: asked for, begun, called off, and shown.
//!
//! [`scene`] looks at the cluster as [`crate::plan`] needs to see it, [`run`]
//! executes what came of it. A plan that has begun is a [`PlanRecord`]; nothing
//! of one lives in memory alone but the set of those that have not ended. So a
//! coordinator that was killed goes on with them: a step that moves is found
//! by its migration, which goes on without the coordinator anyway.
//!
//! ```text
//!  asked for -> blockers? refused, or partial -> record, cordon -> steps -> ended
//!                                                   abort ----------^
//! ```
//!
//! # Room
//!
//! Every step that has not begun has a reservation at its target
//! ([`Cluster::planned`]), so several plans, and VMs that are started meanwhile,
//! never add up to more than a node can hold. A step that waits for room of its
//! own plan reserves only what is beyond it.

mod absent;
mod rehearse;
mod room;
mod run;
mod scene;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

use godwit_shared::api::{
    AbortRequest, DrainRequest, Imbalance, PlanKind, PlanLimits, PlanState, PlanStep, PlanView,
    RebalanceRequest, Stays, StepProgress, StepState,
};
use godwit_shared::model::{Millis, NodeId, PlanId, Problem, UnixMillis, VmId, codes};
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::command::conflict;
use super::turn::{About, Turn};
use crate::effect::{Effect, Timer};
use crate::input::{Output, Survey};
use crate::plan::{self, Balance, Metric, Move, Policy, order};
use crate::record::{Key, PlanRecord};
pub(super) use room::Coming;

use rehearse::Rehearsal;
use scene::Scene;

/// How often a rebalance is thought over because placement refuses a move of it.
const TRIES: usize = 32;
/// Ended plans that are kept.
const KEPT: usize = 100;

/// Whether the load is evened out, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebalanceMode {
    /// Not even when it is asked for.
    Off,
    /// When it is asked for.
    #[default]
    Manual,
    /// By itself as well.
    Continuous,
}

/// How the load is evened out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RebalanceSettings {
    /// Whether, and when.
    pub mode: RebalanceMode,
    /// How often the load is looked at, in seconds.
    pub interval_s: u32,
    /// The least that a plan gains, in percent of a node's load.
    pub threshold_percent: u32,
    /// At most so many moves in one plan.
    pub max_moves: u32,
    /// How long a VM that moved is left alone by plans that begin by themselves,
    /// in seconds.
    pub cooldown_s: u32,
}

impl Default for RebalanceSettings {
    fn default() -> Self {
        Self {
            mode: RebalanceMode::default(),
            interval_s: 300,
            threshold_percent: 5,
            max_moves: 20,
            cooldown_s: 3600,
        }
    }
}

impl RebalanceSettings {
    fn policy(&self, max_moves: Option<u32>) -> Policy {
        let max_moves = max_moves.unwrap_or(self.max_moves);
        Policy {
            threshold: f64::from(self.threshold_percent) / 100.0,
            max_moves: usize::try_from(max_moves).unwrap_or(usize::MAX),
            ..Policy::default()
        }
    }
}

/// What a plan consists of, before it has an id.
struct Draft {
    kind: PlanKind,
    limits: PlanLimits,
    steps: Vec<PlanStep>,
    blockers: Vec<Stays>,
    stopped: Vec<Stays>,
    imbalance: Option<Imbalance>,
    /// What there is to say of steps before they begin, by place.
    notes: BTreeMap<usize, String>,
}

impl Draft {
    /// Nothing moves yet.
    const fn new(kind: PlanKind, limits: PlanLimits) -> Self {
        Self {
            kind,
            limits,
            steps: Vec::new(),
            blockers: Vec::new(),
            stopped: Vec::new(),
            imbalance: None,
            notes: BTreeMap::new(),
        }
    }
}

impl Cluster {
    pub(super) fn on_drain(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        id: PlanId,
        request: &DrainRequest,
        survey: &Survey,
    ) -> Result<Output, Problem> {
        check_limits(&request.limits)?;
        self.member(node)?;
        self.check_no_plan_of(node)?;
        self.check_connected(node, "from")?;
        let draft = self.draft_drain(node, request, survey);
        if request.dry_run {
            return Ok(self.proposed(id, draft));
        }
        check_blockers(&draft, request.partial)?;
        self.set_cordoned(turn, node, true);
        Ok(self.begin_plan(turn, id, draft))
    }

    fn draft_drain(&self, node: &NodeId, request: &DrainRequest, survey: &Survey) -> Draft {
        let mut scene = self.scene(None);
        let kind = PlanKind::Drain {
            node: node.clone(),
            and_return: request.and_return,
        };
        let mut draft = Draft::new(kind, request.limits);
        (draft.blockers, draft.stopped) = self.stays(&scene, node);
        draft
            .blockers
            .extend(self.refused_by_nodes(&mut scene, survey));
        if let Some(host) = scene.host(node) {
            let found = plan::drain(&scene.model, host, &Metric::GODWIT);
            let (moves, stuck) = self.rehearse_drain(&scene, node, &found);
            draft.blockers.extend(stuck);
            draft.steps = self.planned_steps(&scene, &moves, &request.limits);
        }
        draft.notes = survey::notes(&draft.steps, survey);
        draft
    }

    pub(super) fn on_return(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        id: PlanId,
        request: &DrainRequest,
    ) -> Result<Output, Problem> {
        check_limits(&request.limits)?;
        self.member(node)?;
        self.check_no_plan_of(node)?;
        let drain = self.last_drain(node).ok_or_else(|| {
            conflict(
                format!("{node} was not drained, or its VMs were brought back"),
                format!("`godwit node uncordon {node}` opens it to new VMs"),
            )
        })?;
        let (kind, vms) = self.drained(node, drain);
        let draft = self.draft_return(node, kind, &vms, request.limits);
        if request.dry_run {
            return Ok(self.proposed(id, draft));
        }
        self.check_connected(node, "to")?;
        check_blockers(&draft, request.partial)?;
        self.set_cordoned(turn, node, false);
        Ok(self.begin_plan(turn, id, draft))
    }

    /// A node that is opened again gets its VMs back, if its drain was to do so.
    pub(super) fn return_after(&mut self, turn: &mut Turn, node: &NodeId) {
        let Some(drain) = self.last_drain(node).filter(|_| self.is_up(node)) else {
            return;
        };
        let wanted = self.records.plans.get(&drain).is_some_and(|record| {
            let kind = &record.view.kind;
            matches!(kind, PlanKind::Drain { and_return, .. } if *and_return)
        });
        if !wanted || self.check_no_plan_of(node).is_err() {
            return;
        }
        let limits = self.records.plans.get(&drain).map(|plan| plan.view.limits);
        let (kind, vms) = self.drained(node, drain);
        let draft = self.draft_return(node, kind, &vms, limits.unwrap_or_default());
        let id = PlanId::from_u128(derived(turn.now, drain.as_uuid().as_u128(), 0));
        self.begin_plan(turn, id, draft);
    }

    /// The last drain of the node, when it has ended and nothing was brought back.
    fn last_drain(&self, node: &NodeId) -> Option<PlanId> {
        let plans = self.records.plans.values().map(|record| &record.view);
        let of_node = plans.filter(|plan| plan.kind.node() == Some(node));
        let last = of_node.max_by_key(|plan| (plan.created, plan.id))?;
        let drain = matches!(last.kind, PlanKind::Drain { .. });
        (drain && last.state.is_final()).then_some(last.id)
    }

    /// What brings the VMs of that drain back, and which they are.
    fn drained(&self, node: &NodeId, drain: PlanId) -> (PlanKind, BTreeSet<VmId>) {
        let kind = PlanKind::Return {
            node: node.clone(),
            drain,
        };
        let Some(record) = self.records.plans.get(&drain) else {
            return (kind, BTreeSet::new());
        };
        let steps = record.view.steps.iter().zip(&record.view.progress);
        let moved = steps.filter(|(_, progress)| progress.state == StepState::Done);
        (kind, moved.map(|(step, _)| step.vm).collect())
    }

    fn draft_return(
        &self,
        node: &NodeId,
        kind: PlanKind,
        vms: &BTreeSet<VmId>,
        limits: PlanLimits,
    ) -> Draft {
        let scene = self.scene(None);
        let mut draft = Draft::new(kind, limits);
        let Some(to) = scene.host(node) else {
            return draft;
        };
        let mut moves = Vec::new();
        let mut rehearsal = Rehearsal::new(self);
        rehearsal.cordon(node, false);
        let away = vms.iter().filter(|vm| self.owner_is_another(**vm, node));
        for vm in away {
            match self.returning(&scene, &mut rehearsal, *vm, to) {
                Ok(one) => moves.push(one),
                Err(Some(stays)) => draft.blockers.push(stays),
                Err(None) => draft.stopped.extend(self.stopped_vm(*vm)),
            }
        }
        draft.steps = self.planned_steps(&scene, &moves, &limits);
        draft
    }

    pub(super) fn on_rebalance(
        &mut self,
        turn: &mut Turn,
        id: PlanId,
        request: &RebalanceRequest,
    ) -> Result<Output, Problem> {
        check_limits(&request.limits)?;
        let settings = self.settings.rebalance;
        if settings.mode == RebalanceMode::Off {
            let text = "rebalancing is switched off";
            let remedy = "set `mode = \"manual\"` under [rebalance] in the coordinator's file";
            return Err(conflict(text.into(), remedy).field("rebalance.mode"));
        }
        if let Some(running) = self.rebalancing() {
            let remedy = format!("wait for it, or `godwit plan abort {running}`");
            return Err(Problem::new(codes::BUSY, "a rebalance is under way").remedy(remedy));
        }
        let policy = settings.policy(request.max_moves);
        let draft = self.draft_rebalance(&policy, request.limits, None);
        if request.dry_run || draft.steps.is_empty() {
            return Ok(self.proposed(id, draft));
        }
        Ok(self.begin_plan(turn, id, draft))
    }

    /// The timer of continuous rebalancing.
    pub(super) fn on_rebalance_timer(&mut self, turn: &mut Turn) {
        self.arm_rebalance(turn.now, &mut |effect| turn.act(effect));
        let settings = self.settings.rebalance;
        if settings.mode != RebalanceMode::Continuous || !self.observed.plans.is_empty() {
            return;
        }
        // Nodes that are still to come back are no reason to move anything.
        if self.just_started(turn.now) {
            return;
        }
        let cooldown = Millis(u64::from(settings.cooldown_s) * 1000);
        let policy = settings.policy(None);
        let draft = self.draft_rebalance(&policy, PlanLimits::default(), Some(cooldown));
        if !draft.steps.is_empty() {
            let seed = u128::from(self.last_event());
            let id = PlanId::from_u128(derived(turn.now, seed, 1));
            self.begin_plan(turn, id, draft);
        }
    }

    /// The next look at the load, when it is looked at.
    pub(super) fn arm_rebalance(&self, now: UnixMillis, act: &mut dyn FnMut(Effect)) {
        let settings = &self.settings.rebalance;
        if settings.mode == RebalanceMode::Continuous {
            let wait = Millis(u64::from(settings.interval_s.max(1)) * 1000);
            let (timer, at) = (Timer::Rebalance, now.after(wait));
            act(Effect::Arm { timer, at });
        }
    }

    fn draft_rebalance(
        &self,
        policy: &Policy,
        limits: PlanLimits,
        cooldown: Option<Millis>,
    ) -> Draft {
        let mut scene = self.scene(cooldown);
        let moves = self.worthwhile(&mut scene, policy);
        let mut balance = Balance::of(&scene.model, &policy.metric);
        let before = millionths(balance.score());
        for one in order::steps(&scene.model, &moves) {
            balance.put(one.moving.guest, one.moving.to);
        }
        let after = millionths(balance.score());
        let kind = PlanKind::Rebalance {
            continuous: cooldown.is_some(),
        };
        Draft {
            steps: self.planned_steps(&scene, &moves, &limits),
            imbalance: Some(Imbalance { before, after }),
            ..Draft::new(kind, limits)
        }
    }

    /// Moves that placement has nothing against, one after the other. A VM that it
    /// does not let go stays, and the rest is thought over again.
    fn worthwhile(&self, scene: &mut Scene, policy: &Policy) -> Vec<Move> {
        for _ in 0..TRIES {
            let moves = plan::rebalance(&scene.model, policy);
            let steps = order::steps(&scene.model, &moves);
            let moves: Vec<Move> = steps.into_iter().map(|step| step.moving).collect();
            let Some(refused) = self.first_refused(scene, &moves) else {
                return moves;
            };
            scene.model.guests[refused].movable = false;
        }
        Vec::new()
    }

    fn planned_steps(&self, scene: &Scene, moves: &[Move], limits: &PlanLimits) -> Vec<PlanStep> {
        let rate = self.rate_of_one(limits);
        let steps = order::steps(&scene.model, moves);
        let steps = steps.into_iter().filter_map(|step| {
            let moving = step.moving;
            let vm = *scene.vms.get(moving.guest)?;
            let record = self.records.vms.get(&vm)?;
            let takes = godwit_shared::model::Usage::of(&record.spec);
            Some(PlanStep {
                vm,
                name: record.name.clone(),
                source: scene.nodes.get(moving.from)?.clone(),
                target: scene.nodes.get(moving.to)?.clone(),
                takes,
                after: step.after,
                estimate: plan::time_of(takes.memory, rate),
            })
        });
        steps.collect()
    }

    fn view_of(&self, id: PlanId, state: PlanState, draft: Draft) -> PlanView {
        let each = draft.steps.iter();
        let each: Vec<_> = each.map(|s| (s.estimate, s.after.clone())).collect();
        let mut notes = draft.notes;
        let progress = (0..draft.steps.len()).map(|place| StepProgress {
            message: notes.remove(&place),
            ..StepProgress::default()
        });
        PlanView {
            id,
            kind: draft.kind,
            state,
            created: self.observed.now,
            ended: None,
            limits: draft.limits,
            estimate: plan::total_time(&each, draft.limits.parallel),
            rate: self.rate_of_one(&draft.limits),
            imbalance: draft.imbalance,
            blockers: draft.blockers,
            stopped: draft.stopped,
            progress: progress.collect(),
            steps: draft.steps,
            message: String::new(),
        }
    }

    fn proposed(&self, id: PlanId, draft: Draft) -> Output {
        let mut view = self.view_of(id, PlanState::Proposed, draft);
        view.message = match (&view.kind, view.steps.len()) {
            (PlanKind::Rebalance { .. }, 0) => "the load is even enough: nothing moves".into(),
            (_, count) => format!("{count} to move"),
        };
        Output::Plan(view)
    }

    fn begin_plan(&mut self, turn: &mut Turn, id: PlanId, draft: Draft) -> Output {
        let view = self.view_of(id, PlanState::Running, draft);
        let about = view.kind.node().map(About::node).unwrap_or_default();
        let message = format!(
            "the {} began: {} to move (plan {id})",
            title(&view.kind),
            view.steps.len()
        );
        let record = PlanRecord {
            view,
            cancel_running: false,
        };
        let shown = record.view.clone();
        self.records.plans.insert(id, record);
        self.observed.plans.insert(id);
        turn.touch(Key::Plan(id));
        self.note(turn, "plan.began", about, message);
        Output::Plan(shown)
    }

    pub(super) fn on_abort_plan(
        &mut self,
        turn: &mut Turn,
        id: PlanId,
        request: &AbortRequest,
    ) -> Result<Output, Problem> {
        let record = self.records.plans.get_mut(&id);
        let record = record.ok_or_else(|| Problem::not_found("plan", id))?;
        if record.view.state.is_final() {
            let text = format!("the plan has ended: it is {}", record.view.state.as_str());
            return Err(conflict(text, "nothing is left to call off"));
        }
        record.view.state = PlanState::Aborting;
        record.cancel_running |= request.cancel_running;
        let (about, message) = (
            record.view.kind.node().map(About::node).unwrap_or_default(),
            format!("the {} is called off (plan {id})", title(&record.view.kind)),
        );
        turn.touch(Key::Plan(id));
        self.note(turn, "plan.aborting", about, message);
        self.call_off(turn, id);
        self.advance_plan(turn, id);
        self.plan(id).map(Output::Plan)
    }

    fn check_connected(&self, node: &NodeId, way: &str) -> Result<(), Problem> {
        if self.is_up(node) {
            return Ok(());
        }
        let text = format!("{node} is not connected; nothing can be moved {way} it");
        let remedy = format!("see that godwit-node runs on {node}");
        Err(Problem::new(codes::NODE_UNREACHABLE, text).remedy(remedy))
    }

    /// Refuses while a drain or a return of that node is under way.
    fn check_no_plan_of(&self, node: &NodeId) -> Result<(), Problem> {
        let mut running = self.unfinished();
        let other = running.find(|plan| plan.kind.node() == Some(node));
        other.map_or(Ok(()), |plan| {
            let text = format!("the {} is under way", title(&plan.kind));
            let remedy = format!("wait for it, or `godwit plan abort {}`", plan.id);
            Err(Problem::new(codes::BUSY, text).remedy(remedy))
        })
    }

    fn rebalancing(&self) -> Option<PlanId> {
        let mut running = self.unfinished();
        let is = |plan: &&PlanView| matches!(plan.kind, PlanKind::Rebalance { .. });
        running.find(is).map(|plan| plan.id)
    }

    fn forget_old_plans(&mut self, turn: &mut Turn) {
        let ended = self.records.plans.values().map(|record| &record.view);
        let ended = ended.filter(|plan| plan.state.is_final());
        let mut ended: Vec<_> = ended.map(|plan| (plan.ended, plan.id)).collect();
        ended.sort_unstable();
        let many = ended.len().saturating_sub(KEPT);
        for (_, id) in ended.into_iter().take(many) {
            self.records.plans.remove(&id);
            turn.touch(Key::Plan(id));
        }
    }

    /// Every plan kept, the oldest first.
    pub fn plans(&self) -> Vec<PlanView> {
        let plans = self.records.plans.values();
        let mut views: Vec<PlanView> = plans.map(|record| record.view.clone()).collect();
        views.sort_by_key(|view| (view.created, view.id));
        views
    }

    /// One plan.
    pub fn plan(&self, id: PlanId) -> Result<PlanView, Problem> {
        let record = self.records.plans.get(&id);
        let record = record.ok_or_else(|| Problem::not_found("plan", id))?;
        Ok(record.view.clone())
    }
}

/// What it is, for sentences.
pub(super) fn title(kind: &PlanKind) -> String {
    match kind.node() {
        Some(node) => format!("{} of {node}", kind.as_str()),
        None => kind.as_str().to_owned(),
    }
}

fn check_limits(limits: &PlanLimits) -> Result<(), Problem> {
    if (1..=PlanLimits::MOST).contains(&limits.parallel) {
        return Ok(());
    }
    let text = format!("{} moves at once cannot be", limits.parallel);
    Err(Problem::new(codes::BODY_INVALID, text)
        .field("limits.parallel")
        .value(limits.parallel.to_string())
        .remedy(format!("give 1 to {}", PlanLimits::MOST)))
}

/// What blocks a plan is told before it begins, all of it at once.
fn check_blockers(draft: &Draft, partial: bool) -> Result<(), Problem> {
    if partial || draft.blockers.is_empty() {
        return Ok(());
    }
    let count = draft.blockers.len();
    let found = draft.blockers.iter().map(|stays| stays.problem.clone());
    let text = format!(
        "the {} is blocked by {count} VM{}",
        title(&draft.kind),
        if count == 1 { "" } else { "s" }
    );
    Err(Problem::new(codes::MIGRATION_BLOCKED, text)
        .remedy("see to each of them, or ask for a partial plan, which leaves them where they are")
        .and(found.collect()))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small number that is not negative"
)]
fn millionths(score: f64) -> u64 {
    (score.max(0.0) * 1e6).round() as u64
}

/// An id that follows from another one: steps bring no fresh ids for what begins
/// by itself. Its front is the time, as of those that are generated (RFC 9562
/// 5.7); behind it are the bits of the seed, stirred (splitmix64).
pub(super) fn derived(now: UnixMillis, seed: u128, number: u64) -> u128 {
    let halves = seed.to_be_bytes();
    let mut bits = number;
    for byte in halves {
        bits = stir(bits.rotate_left(8) ^ u64::from(byte));
    }
    let time = u128::from(now.0 & 0xffff_ffff_ffff) << 80;
    let version = 7_u128 << 76;
    let middle = u128::from(stir(bits ^ 1) & 0xfff) << 64;
    time | version | middle | u128::from(bits >> 2) | (1 << 63)
}

const fn stir(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
