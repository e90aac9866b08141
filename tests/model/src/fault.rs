//! How much may go wrong.

/// How many faults of each kind may still happen, and how many in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// In all.
    pub total: u8,
    /// The migration's connection is cut.
    pub cuts: u8,
    /// A daemon is killed.
    pub crashes: u8,
    /// A QEMU is killed.
    pub kills: u8,
    /// A host is booted anew.
    pub reboots: u8,
    /// A file cannot be written.
    pub writes: u8,
    /// An operator calls a migration off.
    pub cancels: u8,
    /// A deadline passes while something is still under way.
    pub lates: u8,
    /// An answer to a question is lost.
    pub losses: u8,
    /// A message of the control stream comes twice, or an answer.
    pub repeats: u8,
    /// Somebody asks a target before its source does.
    pub strays: u8,
    /// QEMU refuses to run the CPUs.
    pub refusals: u8,
    /// QEMU runs the CPUs and is not heard in time.
    pub silences: u8,
    /// A mirror's job fails by itself.
    pub jobs: u8,
    /// The coordinator is killed.
    pub outages: u8,
    /// An operator ends a doubt that nobody else can end.
    pub resolves: u8,
    /// A second migration of the same VM is asked for.
    pub seconds: u8,
}

impl Budget {
    /// Nothing may happen.
    pub const NONE: Self = Self {
        total: 0,
        cuts: 0,
        crashes: 0,
        kills: 0,
        reboots: 0,
        writes: 0,
        cancels: 0,
        lates: 0,
        losses: 0,
        repeats: 0,
        strays: 0,
        refusals: 0,
        silences: 0,
        jobs: 0,
        outages: 0,
        resolves: 0,
        seconds: 0,
    };

    /// The same, so many in all.
    #[must_use]
    pub const fn of(mut self, total: u8) -> Self {
        self.total = total;
        self
    }

    /// Each kind at most so often, and so many in all.
    pub const fn each(times: u8, total: u8) -> Self {
        Self {
            total,
            cuts: times,
            crashes: times,
            kills: times,
            reboots: times,
            writes: times,
            cancels: times,
            lates: times,
            losses: times,
            repeats: times,
            refusals: times,
            silences: times,
            jobs: times,
            resolves: times,
            ..Self::NONE
        }
    }

    /// The bound of that name.
    pub fn kind_mut(&mut self, name: &str) -> Option<&mut u8> {
        Some(match name {
            "total" => &mut self.total,
            "cuts" => &mut self.cuts,
            "crashes" => &mut self.crashes,
            "kills" => &mut self.kills,
            "reboots" => &mut self.reboots,
            "writes" => &mut self.writes,
            "cancels" => &mut self.cancels,
            "lates" => &mut self.lates,
            "losses" => &mut self.losses,
            "repeats" => &mut self.repeats,
            "strays" => &mut self.strays,
            "refusals" => &mut self.refusals,
            "silences" => &mut self.silences,
            "jobs" => &mut self.jobs,
            "outages" => &mut self.outages,
            "resolves" => &mut self.resolves,
            _ => return None,
        })
    }

    /// When nothing more may go wrong, what kind it might have been makes no
    /// difference any more.
    pub fn forget_the_rest(&mut self) {
        if self.total == 0 {
            *self = Self {
                seconds: self.seconds,
                ..Self::default()
            };
        }
    }
}
