//! Disks that are not shared: two images, and the job that mirrors one onto the
//! other.
//!
//! Source: QEMU's `blockdev-mirror` and `block-job-cancel` of
//! `qapi/block-core.json`, and `nbd-server-stop` of `qapi/block-export.json`.
//!
//! ```text
//!  None --blockdev-mirror--> Copying --> Ready (BLOCK_JOB_READY)
//!  Ready --block-job-cancel--> Finishing --> Left (BLOCK_JOB_COMPLETED)
//!  Copying, Ready, Finishing --stream broken, an error--> Left (.. with an error)
//!  Left --blockdev-del--> None            any --abort (forced cancel)--> None
//! ```
//!
//! What an image holds is told by how many writes of the guest's it misses, and
//! of that number only whether it is 0 ([`Image::whole`]): a guest that runs
//! writes at every moment. A copy is whole when its job has ended in the regular
//! way while the guest stood still, and until the guest runs again anywhere else.
//!
//! Several disks go their way together: their jobs are one here.

use godwit_node_logic::domain::Request;
use godwit_node_logic::handoff::SourceEvent;
use godwit_shared::model::{Epoch, Problem, codes};

use crate::host::{lost, refused};
use crate::judge::Breach;
use crate::mutant::Mutant;
use crate::qemu::{News, Progress, Qemu};
use crate::step::Step;
use crate::world::{Handoff, Host, HostState, InTask, Move, OutTask, World};

/// A host's image of the VM's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image {
    /// It misses no write of the guest's.
    pub whole: bool,
    /// It was made for that migration, and goes with it (the second name of
    /// `images::make`).
    pub made_for: Option<Move>,
    /// It stays, whatever becomes of the guest: its operator was told.
    pub kept: bool,
}

impl Image {
    /// The one with which the guest was created.
    pub const FIRST: Self = Self {
        whole: true,
        made_for: None,
        kept: false,
    };

    const fn empty(m: Move) -> Self {
        Self {
            whole: false,
            made_for: Some(m),
            kept: false,
        }
    }
}

/// The mirror of a QEMU that is a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mirror {
    /// There is none.
    #[default]
    None,
    /// It copies.
    Copying(Move),
    /// Both sides are the same, but for what is being written.
    Ready(Move),
    /// It was told to end with both sides the same.
    Finishing(Move),
    /// Its job is no more, and holds the target's export still.
    Left(Move),
}

impl Mirror {
    const fn runs(self) -> Option<Move> {
        match self {
            Self::Copying(m) | Self::Ready(m) | Self::Finishing(m) => Some(m),
            Self::None | Self::Left(_) => None,
        }
    }
}

/// What a source's daemon waits for (its `Mirrors`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Watched {
    /// It has none, or looks no more.
    #[default]
    Nothing,
    /// An end is a failure.
    Copying,
    /// An end is what was asked for.
    Finishing,
}

/// What a QEMU's mirror may do next.
pub fn progress(world: &World, qemu: &Qemu, mut add: impl FnMut(bool, Progress)) {
    let Some(m) = qemu.mirror.runs() else { return };
    let broken = !is_carried(world, m);
    add(broken, Progress::MirrorBreak);
    let copies = matches!(qemu.mirror, Mirror::Copying(_));
    add(!broken && copies, Progress::MirrorReady);
    let ends = matches!(qemu.mirror, Mirror::Finishing(_));
    add(!broken && ends, Progress::MirrorEnd);
}

/// Whether a mirror's job may fail by itself (no room, an error of the disk).
pub fn may_fail(world: &World, n: Host) -> bool {
    let qemu = world.hosts[n].qemu.as_ref();
    qemu.is_some_and(|q| q.mirror.runs().is_some())
}

/// The stream of a mirror stands, with the target's export at its other end.
fn is_carried(world: &World, m: Move) -> bool {
    world.moves[m].link.is_up() && exports(world, m)
}

fn exports(world: &World, m: Move) -> bool {
    let target = world
        .target_of(m)
        .and_then(|n| world.hosts[n].qemu.as_ref());
    target.is_some_and(|q| q.exports)
}

/// Whether it is known what became of an export that the source has let go of.
pub fn is_released(world: &World, m: Move) -> bool {
    !exports(world, m) || !world.moves[m].link.is_up()
}

/// What is wrong with the images where the guest belongs to `owner`.
pub fn unsettled(world: &World, owner: Host) -> Option<&'static str> {
    let left = |n: Host| {
        let host = &world.hosts[n];
        // A host that forgot that its guest has left shows an old copy of it,
        // and its disk is that copy's.
        let of_copy = world.judge.forgotten && host.disk.record.is_some();
        host.image.is_some_and(|image| !image.kept) && !of_copy
    };
    if (0..world.hosts.len()).any(|n| n != owner && left(n)) {
        return Some("a disk is left where the guest is not");
    }
    let host = &world.hosts[owner];
    let whole = |host: &HostState| host.image.is_some_and(|image| image.whole);
    // The guest has ended, and who owned it was forgotten, or is as an operator
    // said who did not know: its disk is somewhere.
    let ended = world.judge.killed && world.hosts.iter().all(|host| host.qemu.is_none());
    let unknown = world.judge.forgotten || world.judge.resolved;
    if ended && unknown && world.hosts.iter().any(|host| whole(host)) {
        return None;
    }
    if !whole(host) {
        return Some("the owner's disk is gone, or misses a write");
    }
    let holds = |q: &Qemu| q.mirror != Mirror::None || q.exports;
    let holds = host.qemu.as_ref().is_some_and(holds);
    holds.then_some("a mirror is left in the owner's QEMU")
}

impl Step<'_> {
    /// Whether the guest's disk moves along.
    pub(crate) const fn mirrors(&self) -> bool {
        self.model.plan.mirrors
    }

    /// The supervisor makes the image, on a disk that knows of it. Whether there
    /// was nothing in its way.
    pub(crate) fn make_image(&mut self, n: Host, m: Move) -> bool {
        if !self.mirrors() {
            return true;
        }
        let host = self.world.hosts[n].edit();
        host.synced = host.disk.clone();
        let free = host.image.is_none();
        if free {
            host.image = Some(Image::empty(m));
        }
        free
    }

    /// The grant of a guest that comes with its disk is written through: a host
    /// that forgot it would remove that disk.
    pub(crate) fn write_through(&mut self, n: Host) {
        if self.mirrors() && !self.mutates(Mutant::GrantNotWrittenThrough) {
            let host = self.world.hosts[n].edit();
            host.synced = host.disk.clone();
        }
    }

    /// The guest has arrived: the image is its own.
    pub(crate) fn keep_image(&mut self, n: Host) {
        if let Some(image) = &mut self.world.hosts[n].edit().image {
            image.made_for = None;
        }
    }

    /// The domain's files are removed, and the images that go with them.
    pub(crate) fn remove_image(&mut self, n: Host, request: Request, handoff: Option<Handoff>) {
        let made_for = self.world.hosts[n].image.and_then(|image| image.made_for);
        match (request, handoff) {
            (
                Request::Discard,
                Some(Handoff::Incoming {
                    m, images: true, ..
                }),
            ) if made_for == Some(m) && !self.mutates(Mutant::TargetKeepsDisk) => {
                self.world.hosts[n].edit().image = None;
            }
            (
                Request::Retire,
                Some(Handoff::Outgoing {
                    epoch,
                    images: true,
                    ..
                }),
            ) => self.give_up_disk(n, epoch),
            _ => {}
        }
    }

    /// A source removes its image.
    pub(crate) fn give_up_disk(&mut self, n: Host, epoch: Epoch) {
        self.judge_given_up(n, epoch);
        self.world.hosts[n].edit().image = None;
    }

    /// Nobody knows what has become of the guest: the image stays, and that is
    /// logged.
    pub(crate) fn keep_image_for_good(&mut self, n: Host) {
        if let Some(image) = &mut self.world.hosts[n].edit().image {
            image.kept = true;
        }
    }

    /// `blockdev-add` and `blockdev-mirror`.
    pub(crate) fn start_mirror(&mut self, n: Host, m: Move) {
        let watched = self.watched(m) == Watched::Copying;
        let free = self.world.hosts[n].qemu.as_ref();
        let free = free.is_some_and(|q| q.mirror == Mirror::None);
        if !watched || !free || !is_carried(&self.world, m) {
            return self.tell_source(m, SourceEvent::MirrorFailed(refused()));
        }
        self.qemu_mut(n, |q| q.mirror = Mirror::Copying(m));
    }

    /// The daemon wants it ended, and QEMU is told so.
    pub(crate) fn want_mirror_finished(&mut self, m: Move) {
        if self.watched(m) != Watched::Nothing {
            self.out_mut(m, |o| o.watched = Watched::Finishing);
            self.out_push(m, OutTask::FinishMirror);
        } else if self.mutates(Mutant::MirrorFinishedEarly) {
            self.tell_source(m, SourceEvent::MirrorsFinished);
        }
    }

    /// `block-job-cancel`: one that is not ready yet is broken off by it.
    pub(crate) fn finish_mirror(&mut self, n: Host, m: Move) {
        let mirror = self.world.hosts[n].qemu.as_ref().map(|q| q.mirror);
        match mirror {
            Some(Mirror::Ready(_)) => self.qemu_mut(n, |q| q.mirror = Mirror::Finishing(m)),
            Some(Mirror::Copying(_)) => self.break_mirror(n),
            _ => self.tell_source(m, SourceEvent::MirrorFailed(refused())),
        }
    }

    /// `blockdev-del`: the target sees that its export is let go of.
    pub(crate) fn let_go_of_mirror(&mut self, n: Host, m: Move) {
        let left = |q: &Qemu| q.mirror == Mirror::Left(m);
        if !self.world.hosts[n].qemu.as_ref().is_some_and(left) {
            return self.tell_source(m, SourceEvent::MirrorFailed(refused()));
        }
        self.qemu_mut(n, |q| q.mirror = Mirror::None);
        if self.world.moves[m].link.is_up() {
            self.in_push(m, InTask::EndExports);
        }
        self.out_push(m, OutTask::Released);
    }

    /// The target's word, or the end of the stream without it.
    pub(crate) fn released(&mut self, m: Move) {
        let released = !exports(&self.world, m) && self.world.moves[m].link.is_up();
        let event = match released || self.mutates(Mutant::FinishedBeforeReleased) {
            true => SourceEvent::MirrorsFinished,
            false => SourceEvent::MirrorFailed(lost()),
        };
        self.tell_source(m, event);
    }

    /// `nbd-server-stop`.
    pub(crate) fn end_exports(&mut self, n: Host) {
        self.qemu_mut(n, |q| q.exports = false);
    }

    /// Whatever mirrors there are end, of this daemon or an earlier one.
    pub(crate) fn abort_mirror(&mut self, n: Host) -> bool {
        if !self.mutates(Mutant::StayLeavesMirror) {
            self.qemu_mut(n, |q| q.mirror = Mirror::None);
        }
        self.world.hosts[n].qemu.is_some()
    }

    /// The mirror gets on.
    pub(crate) fn mirror_progress(&mut self, n: Host, what: Progress) {
        let Some(m) = self.world.hosts[n]
            .qemu
            .as_ref()
            .and_then(|q| q.mirror.runs())
        else {
            return;
        };
        match what {
            Progress::MirrorReady => {
                self.qemu_mut(n, |q| q.mirror = Mirror::Ready(m));
                self.qemu_says(n, News::MirrorReady);
            }
            Progress::MirrorEnd => {
                let still = self.world.hosts[n]
                    .qemu
                    .as_ref()
                    .is_some_and(|q| !q.running);
                let from = self.world.hosts[n].image.is_some_and(|image| image.whole);
                let target = self.world.target_of(m);
                if let Some(image) = target.and_then(|t| self.world.hosts[t].edit().image.as_mut())
                {
                    image.whole = still && from;
                }
                self.qemu_mut(n, |q| q.mirror = Mirror::Left(m));
                self.qemu_says(n, News::MirrorEnded);
            }
            _ => self.break_mirror(n),
        }
    }

    /// The job fails, or is broken off.
    pub(crate) fn break_mirror(&mut self, n: Host) {
        let runs = self.world.hosts[n]
            .qemu
            .as_ref()
            .and_then(|q| q.mirror.runs());
        if let Some(m) = runs {
            self.qemu_mut(n, |q| q.mirror = Mirror::Left(m));
            self.qemu_says(n, News::MirrorFailed);
        }
    }

    /// A job's event reaches the migration.
    pub(crate) fn hear_mirror(&mut self, m: Move, news: News) {
        match (news, self.watched(m)) {
            (_, Watched::Nothing) => {}
            (News::MirrorReady, _) => self.tell_source(m, SourceEvent::MirrorsReady),
            (News::MirrorEnded, Watched::Finishing) => {
                self.out_mut(m, |o| o.watched = Watched::Nothing);
                self.out_push(m, OutTask::LetGo);
            }
            _ => {
                let problem = Problem::new(codes::MIGRATION_FAILED, "");
                self.tell_source(m, SourceEvent::MirrorFailed(problem));
            }
        }
    }

    fn watched(&self, m: Move) -> Watched {
        let outgoing = self.world.moves[m].outgoing.as_ref();
        outgoing.map_or(Watched::Nothing, |o| o.watched)
    }

    /// CPUs begin to run on that host: what they write is on its disk only.
    pub(crate) fn judge_disks(&mut self, n: Host) {
        if !self.mirrors() {
            return;
        }
        let host = &self.world.hosts[n];
        let whole = host.image.is_some_and(|image| image.whole);
        if !whole || host.qemu.as_ref().is_some_and(|q| q.exports) {
            self.world.judge.note(Breach::Disk);
        }
        self.judge_may_have_run();
        for other in (0..self.world.hosts.len()).filter(|other| *other != n) {
            let misses = self.world.hosts[other]
                .image
                .is_some_and(|image| image.whole);
            if let Some(image) = misses
                .then(|| self.world.hosts[other].edit().image.as_mut())
                .flatten()
            {
                image.whole = false;
            }
        }
    }

    /// CPUs run under the highest right, or nobody can say that they did not.
    pub(crate) fn judge_may_have_run(&mut self) {
        if self.mirrors() {
            self.world.judge.started = self.world.judge.started.max(self.world.judge.right.0);
        }
    }

    /// A source that ran the guest at that epoch gives its disk up: fine once the
    /// guest has run elsewhere, at a later one.
    fn judge_given_up(&mut self, n: Host, epoch: Epoch) {
        let holder = self.world.judge.right.1;
        let ran = self.model.paused || self.world.judge.started > epoch;
        if holder == n || !ran {
            self.world.judge.note(Breach::GivenUp);
        }
    }

    /// A target's daemon comes back after its host was booted anew, and the
    /// guest may have run there: what it wrote stays.
    pub(crate) fn keeps_disk(&self) -> bool {
        self.mirrors() && !self.mutates(Mutant::RebootDropsDisk)
    }

    /// What a target learns of a file that is in the way.
    pub(crate) fn disk_blockers(&self, n: Host) -> Option<Problem> {
        let blocked = self.mirrors() && self.world.hosts[n].image.is_some();
        blocked.then(|| Problem::new(codes::MIGRATION_BLOCKED, ""))
    }

    /// A mirror is told to a target by its export only.
    pub(crate) fn opens_exports(&mut self, n: Host) {
        if self.mirrors() {
            self.qemu_mut(n, |q| q.exports = true);
        }
    }
}
