//! What is searched: the bounds, and the seeded bugs with the bounds in which
//! each of them has to be found.
//!
//! A state space grows by about a hundred times with each fault that may happen
//! at any step. So the cases overlap: all kinds of faults together, few of them;
//! few kinds, and more of them.

use godwit_node_logic::handoff::Plan;
use godwit_shared::model::{Postcopy, TimeoutAction};

use crate::fault::Budget;
use crate::judge::{
    CALLED_OFF, DISK_KEPT, HIGHEST_EPOCH, MOVES_ON, NO_PAST, ONE_RUNNER, SETTLES, SHOWN_LOST,
    TAKEN_BACK, WHOLE_DISK,
};
use crate::{Handoff, Mutant};

/// One search.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub what: &'static str,
    /// What is searched.
    pub model: Handoff,
    /// What has to be possible.
    pub possible: &'static [&'static str],
}

/// One seeded bug.
#[derive(Debug, Clone)]
pub struct Seed {
    /// The bug.
    pub mutant: Mutant,
    /// Where it is looked for.
    pub model: Handoff,
    /// What has to be found broken.
    pub breaks: &'static str,
}

/// Every kind of fault, so often each. Questions that nobody in doubt asks are
/// left out: they are told apart from a host that forgets what it said.
const fn any(times: u8, total: u8) -> Budget {
    Budget::each(times, total)
}

/// The kinds of faults after which the right to run is at stake.
const fn hard(total: u8) -> Budget {
    Budget {
        total,
        cuts: 2,
        crashes: 2,
        kills: 1,
        writes: 1,
        lates: 1,
        ..Budget::NONE
    }
}

const fn with_strays(budget: Budget) -> Budget {
    Budget {
        strays: 1,
        reboots: 0,
        ..budget
    }
}

const fn with_second(budget: Budget) -> Budget {
    Budget {
        seconds: 1,
        ..budget
    }
}

const fn with_outages(budget: Budget) -> Budget {
    Budget {
        outages: 1,
        ..budget
    }
}

/// Everything that one migration may come to.
const ENDS: &[&str] = &[MOVES_ON, CALLED_OFF, TAKEN_BACK, SHOWN_LOST];
/// The same where no host is booted anew.
const ENDS_OF_ONE_BOOT: &[&str] = &[MOVES_ON, CALLED_OFF, TAKEN_BACK];
/// The same where nobody calls it off.
const ENDS_BY_ITSELF: &[&str] = &[MOVES_ON, TAKEN_BACK];
/// The guest goes over as soon as its memory was sent once.
const POSTCOPY: Plan = Plan {
    mirrors: false,
    postcopy: Postcopy::Always,
    timeout: None,
    timeout_action: TimeoutAction::Cancel,
};
/// The guest's disk moves along.
const MIRRORED: Plan = Plan {
    mirrors: true,
    postcopy: Postcopy::Never,
    ..POSTCOPY
};
/// There again, or to the node that it came from.
const THERE_AND_BACK: &[(usize, usize)] = &[(0, 1), (1, 0)];
/// On to a third node, from either.
const ON: &[(usize, usize)] = &[(0, 2), (1, 2)];

/// The cases that every change has to pass.
pub fn quick() -> Vec<Case> {
    vec![
        case("two_faults", "any two faults", any(2, 2), ENDS),
        case(
            "two_faults_and_a_stranger",
            "any two faults, one of them a question that the source did not ask",
            with_strays(any(2, 2)),
            ENDS_OF_ONE_BOOT,
        ),
        paused(
            "two_faults_paused",
            "any two faults, and a guest that is paused",
            any(2, 2),
        ),
        case(
            "three_faults",
            "any three faults, at most two of a kind",
            any(2, 3),
            ENDS,
        ),
        second(
            "and_back",
            "any fault, and a second migration: the same again, or back",
            with_second(any(1, 1)),
            THERE_AND_BACK,
        ),
        second(
            "and_on",
            "any fault, and a second migration to a third node",
            with_second(any(1, 1)),
            ON,
        ),
        second(
            "and_back_two_faults",
            "two hard faults, and a second migration: the same again, or back",
            with_second(hard(2)),
            THERE_AND_BACK,
        ),
        coordinated(
            "coordinator",
            "any fault, the coordinator's outage among them",
            with_outages(any(1, 1)),
            ENDS_OF_ONE_BOOT,
        ),
        coordinated(
            "coordinator_two_faults",
            "two of: cut, crash, early deadline, outage of the coordinator",
            with_outages(Budget {
                total: 2,
                cuts: 1,
                crashes: 1,
                lates: 1,
                ..Budget::NONE
            }),
            ENDS_BY_ITSELF,
        ),
        together(
            "coordinator_and_back",
            "no fault, a second migration, and a coordinator",
            Budget::NONE,
            &[MOVES_ON],
        ),
        postcopy(case(
            "postcopy_two_faults",
            "post-copy, and any two faults",
            any(2, 2),
            ENDS,
        )),
        postcopy(with(
            second(
                "postcopy_and_back",
                "post-copy, no fault, and a second one: the same again, or back",
                with_second(Budget::NONE),
                THERE_AND_BACK,
            ),
            &[MOVES_ON],
        )),
        postcopy(coordinated(
            "postcopy_coordinator",
            "post-copy, and an outage of the coordinator",
            with_outages(Budget::NONE.of(1)),
            &[MOVES_ON],
        )),
        disks(case(
            "disks_two_faults",
            "a disk that moves along, and any two faults",
            any(2, 2),
            ENDS,
        )),
        disks(second(
            "disks_and_back",
            "a disk that moves along, any fault, and a second one: the same again, or back",
            with_second(any(1, 1)),
            THERE_AND_BACK,
        )),
        postcopy(disks(case(
            "disks_postcopy",
            "a disk that moves along, post-copy, and any fault",
            any(1, 1),
            ENDS_OF_ONE_BOOT,
        ))),
    ]
}

/// The cases for which there has to be time.
pub fn deep() -> Vec<Case> {
    vec![
        case(
            "four_faults",
            "any four faults, at most two of a kind",
            any(2, 4),
            ENDS,
        ),
        case(
            "four_faults_and_a_stranger",
            "any four faults, one of them a question that the source did not ask",
            with_strays(any(2, 4)),
            ENDS_OF_ONE_BOOT,
        ),
        paused(
            "three_faults_paused",
            "any three faults, and a guest that is paused",
            any(2, 3),
        ),
        second(
            "and_back_any_two_faults",
            "any two faults, and a second migration: the same again, or back",
            with_second(any(2, 2)),
            THERE_AND_BACK,
        ),
        second(
            "and_on_any_two_faults",
            "any two faults, and a second migration to a third node",
            with_second(any(2, 2)),
            ON,
        ),
        coordinated(
            "coordinator_any_two_faults",
            "any two faults, the coordinator's outage among them",
            with_outages(any(1, 2)),
            ENDS,
        ),
        together(
            "coordinator_and_back_a_crash",
            "one crash, a second migration, and a coordinator",
            Budget {
                total: 1,
                crashes: 1,
                ..Budget::NONE
            },
            ENDS_BY_ITSELF,
        ),
        postcopy(case(
            "postcopy_three_faults",
            "post-copy, and any three faults, at most two of a kind",
            any(2, 3),
            ENDS,
        )),
        postcopy(second(
            "postcopy_and_back_a_fault",
            "post-copy, any fault, and a second one: the same again, or back",
            with_second(any(1, 1)),
            THERE_AND_BACK,
        )),
        postcopy(coordinated(
            "postcopy_coordinator_a_fault",
            "post-copy, and any fault, the coordinator's outage among them",
            with_outages(any(1, 1)),
            ENDS_OF_ONE_BOOT,
        )),
        postcopy(second(
            "postcopy_and_on",
            "post-copy, any fault, and a second one to a third node",
            with_second(any(1, 1)),
            ON,
        )),
        disks(case(
            "disks_three_faults",
            "a disk that moves along, and any three faults, at most two of a kind",
            any(2, 3),
            ENDS,
        )),
        disks(second(
            "disks_and_on",
            "a disk that moves along, any fault, and a second one to a third node",
            with_second(any(1, 1)),
            ON,
        )),
        postcopy(disks(case(
            "disks_postcopy_two_faults",
            "a disk that moves along, post-copy, and any two faults",
            any(2, 2),
            ENDS,
        ))),
    ]
}

fn case(
    name: &'static str,
    what: &'static str,
    budget: Budget,
    possible: &'static [&'static str],
) -> Case {
    Case {
        name,
        what,
        model: Handoff::with(budget),
        possible,
    }
}

fn with(mut case: Case, possible: &'static [&'static str]) -> Case {
    case.possible = possible;
    case
}

fn postcopy(mut case: Case) -> Case {
    case.model.plan.postcopy = POSTCOPY.postcopy;
    case
}

fn disks(mut case: Case) -> Case {
    case.model.plan.mirrors = true;
    case
}

fn paused(name: &'static str, what: &'static str, budget: Budget) -> Case {
    let mut case = case(name, what, budget, ENDS);
    case.model.paused = true;
    case
}

fn second(
    name: &'static str,
    what: &'static str,
    budget: Budget,
    routes: &'static [(usize, usize)],
) -> Case {
    let mut case = case(name, what, budget, ENDS_BY_ITSELF);
    case.model.seconds = routes;
    case
}

fn coordinated(
    name: &'static str,
    what: &'static str,
    budget: Budget,
    possible: &'static [&'static str],
) -> Case {
    let mut case = case(name, what, budget, possible);
    case.model.coordinator = true;
    case
}

fn together(
    name: &'static str,
    what: &'static str,
    budget: Budget,
    possible: &'static [&'static str],
) -> Case {
    let mut case = second(name, what, with_second(budget), THERE_AND_BACK);
    case.model.coordinator = true;
    case.possible = possible;
    case
}

/// The seeded bugs. What each one breaks is what the guest's owner would see,
/// not only a rule of the code's own.
pub fn seeds() -> Vec<Seed> {
    let plain = |mutant, breaks| seed(mutant, hard(2), breaks);
    let late = Budget {
        total: 2,
        lates: 2,
        ..Budget::NONE
    };
    let refused = Budget {
        crashes: 1,
        refusals: 1,
        lates: 1,
        total: 2,
        ..Budget::NONE
    };
    let mut all = vec![
        seed(Mutant::ResumeOnTimeout, late, ONE_RUNNER),
        plain(Mutant::GrantBeforeJournal, NO_PAST),
        plain(Mutant::RunBeforeJournal, NO_PAST),
        plain(Mutant::GrantAfterRefusal, ONE_RUNNER),
        seed(Mutant::RefusalBeforeTombstone, refused, ONE_RUNNER),
        seed(Mutant::RetireWithoutWord, refused, SETTLES),
        plain(Mutant::TakeBackAtOldEpoch, HIGHEST_EPOCH),
        seed(
            Mutant::UnwrittenRefusal,
            with_strays(Budget::NONE.of(1)),
            ONE_RUNNER,
        ),
        plain(Mutant::RecoverForgetsGrant, ONE_RUNNER),
        seed(
            Mutant::RebootRefuses,
            Budget {
                reboots: 1,
                ..Budget::NONE.of(1)
            },
            NO_PAST,
        ),
        seed(
            Mutant::UnclearHandsBack,
            Budget {
                silences: 1,
                ..Budget::NONE.of(1)
            },
            SETTLES,
        ),
        seed(
            Mutant::WordNotTried,
            Budget {
                cuts: 1,
                writes: 1,
                lates: 1,
                ..Budget::NONE.of(3)
            },
            ONE_RUNNER,
        ),
        seed(
            Mutant::LeaveBeforeArrived,
            with_second(Budget {
                crashes: 1,
                ..Budget::NONE.of(1)
            }),
            ONE_RUNNER,
        ),
        seed(
            Mutant::RelayRefusesForAbsent,
            Budget {
                crashes: 1,
                ..Budget::NONE.of(1)
            },
            ONE_RUNNER,
        ),
        seed(
            Mutant::RelayTakesOwnerForRunner,
            Budget {
                refusals: 1,
                lates: 1,
                ..Budget::NONE.of(2)
            },
            SETTLES,
        ),
    ];
    all.extend(postcopy_seeds());
    all.extend(disk_seeds());
    for seed in &mut all {
        seed.model.seconds = match seed.mutant {
            Mutant::LeaveBeforeArrived => THERE_AND_BACK,
            _ => &[],
        };
        seed.model.coordinator = matches!(
            seed.mutant,
            Mutant::RelayRefusesForAbsent | Mutant::RelayTakesOwnerForRunner
        );
    }
    all
}

/// The bugs that only a post-copy can have.
fn postcopy_seeds() -> Vec<Seed> {
    let one_cut = Budget {
        cuts: 1,
        ..Budget::NONE.of(1)
    };
    let one_crash = Budget {
        crashes: 1,
        ..Budget::NONE.of(1)
    };
    let mut all = vec![
        seed(Mutant::PostcopyUnstopped, one_cut, ONE_RUNNER),
        seed(Mutant::PostcopyTakesBackUnasked, one_cut, ONE_RUNNER),
        seed(Mutant::RecoverForgetsEarlyGrant, one_crash, ONE_RUNNER),
        seed(Mutant::RetireBeforeComplete, Budget::NONE, SETTLES),
    ];
    for seed in &mut all {
        seed.model.plan = POSTCOPY;
    }
    all
}

/// The bugs that only a move with its disk can have.
fn disk_seeds() -> Vec<Seed> {
    let cancelled = Budget {
        cancels: 1,
        ..Budget::NONE.of(1)
    };
    let rebooted = Budget {
        reboots: 1,
        ..Budget::NONE.of(1)
    };
    let mut all = vec![
        seed(Mutant::DiskGivenUpEarly, Budget::NONE, DISK_KEPT),
        seed(Mutant::MirrorFinishedEarly, Budget::NONE, WHOLE_DISK),
        seed(Mutant::FinishedBeforeReleased, Budget::NONE, WHOLE_DISK),
        seed(Mutant::TargetKeepsDisk, cancelled, SETTLES),
        seed(Mutant::StayLeavesMirror, cancelled, SETTLES),
        seed(Mutant::RebootDropsDisk, rebooted, SETTLES),
        seed(Mutant::GrantNotWrittenThrough, rebooted, SETTLES),
    ];
    for seed in &mut all {
        seed.model.plan = MIRRORED;
    }
    all
}

fn seed(mutant: Mutant, budget: Budget, breaks: &'static str) -> Seed {
    let mut model = Handoff::with(budget);
    model.mutant = Some(mutant);
    Seed {
        mutant,
        model,
        breaks,
    }
}

/// Bounds of somebody's own, each as `name=number`; none where one of them is
/// not known.
pub fn bounded(bounds: &[String]) -> Option<Case> {
    let mut case = case("bounds", "of your own", Budget::NONE, &[]);
    for bound in bounds {
        let (name, number) = bound.split_once('=')?;
        let number: u8 = number.parse().ok()?;
        let model = &mut case.model;
        match (name, number) {
            ("coordinator", _) => model.coordinator = number > 0,
            ("paused", _) => model.paused = number > 0,
            ("postcopy", _) => model.plan.postcopy = POSTCOPY.postcopy,
            ("disks", _) => model.plan.mirrors = number > 0,
            ("second", _) => {
                model.budget.seconds = number.min(1);
                model.seconds = if number == 2 { ON } else { THERE_AND_BACK };
            }
            _ => *model.budget.kind_mut(name)? = number,
        }
    }
    Some(case)
}
