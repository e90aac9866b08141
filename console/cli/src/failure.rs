//! How a run ends when it does not succeed: what is told, and the exit code.

use std::io;
use std::process::ExitCode;

use godwit_shared::model::{Problem, codes};

use crate::output::{Ui, problem};

/// The exit codes, a stable part of the command's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Whoever read our output has gone (`godwit vm list | head -1`).
    Done = 0,
    /// Refused, or failed.
    Failed = 1,
    /// The arguments cannot be meant.
    Usage = 2,
    /// The coordinator cannot be reached.
    Unreachable = 3,
    /// No such thing.
    NotFound = 4,
    /// Something else is in the way: a name, a state, another action.
    Conflict = 5,
    /// It did not end in its time.
    TimedOut = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The exit code that goes with a problem's code.
    pub(crate) fn of_code(code: &str) -> Self {
        match code {
            codes::NOT_FOUND => Self::NotFound,
            codes::ALREADY_EXISTS
            | codes::STATE_CONFLICT
            | codes::BUSY
            | codes::NODE_NOT_EMPTY
            | codes::NODE_NAME_TAKEN => Self::Conflict,
            codes::TIMEOUT => Self::TimedOut,
            codes::COORDINATOR_UNREACHABLE | codes::NO_LEADER | codes::CA_MISMATCH => {
                Self::Unreachable
            }
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An unsuccessful end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    problems: Vec<Problem>,
    exit: Exit,
}

impl Failure {
    /// A problem whose exit code is not the one of its code.
    pub(crate) fn with_exit(problem: Problem, exit: Exit) -> Self {
        Self {
            problems: vec![problem],
            exit,
        }
    }

    /// Arguments that cannot be meant, found after they were parsed.
    pub(crate) fn usage(problem: Problem) -> Self {
        Self::with_exit(problem, Exit::Usage)
    }

    /// An end that has been told already.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self {
            problems: Vec::new(),
            exit,
        }
    }

    /// Several failures of one run. Their exit code is the one that they share,
    /// else the general one.
    pub(crate) fn several(failures: Vec<Self>) -> Result<(), Self> {
        let Some(first) = failures.first().map(|failure| failure.exit) else {
            return Ok(());
        };
        let exit = if failures.iter().all(|failure| failure.exit == first) {
            first
        } else {
            Exit::Failed
        };
        let problems = failures.into_iter().flat_map(|f| f.problems).collect();
        Err(Self { problems, exit })
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether trying again may help: the coordinator was away, not unwilling.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.problems.iter().any(|problem| {
            problem.code == codes::COORDINATOR_UNREACHABLE || problem.code == codes::NO_LEADER
        })
    }

    /// The code of the first problem.
    pub(crate) fn code(&self) -> Option<&str> {
        self.problems.first().map(|problem| problem.code.as_ref())
    }

    /// The sentence of the first problem.
    pub(crate) fn message(&self) -> Option<&str> {
        self.problems
            .first()
            .map(|problem| problem.message.as_str())
    }

    /// Says about which of several things this is.
    #[must_use]
    pub(crate) fn about(mut self, name: &str) -> Self {
        for problem in &mut self.problems {
            if !problem.message.contains(name) {
                problem.message = format!("{name}: {}", problem.message);
            }
        }
        self
    }

    /// Tells it on stderr.
    pub(crate) fn report(&self, ui: &Ui) {
        for problem in &self.problems {
            ui.complain(&problem::render(problem, ui));
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let exit = Exit::of_code(&problem.code);
        Self::with_exit(problem, exit)
    }
}

impl From<io::Error> for Failure {
    /// A failure to write our own output.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Done);
        }
        Problem::new(codes::HOST_IO, format!("cannot write the output: {error}"))
            .remedy("look at where the output goes: a full disk, a closed terminal")
            .into()
    }
}
