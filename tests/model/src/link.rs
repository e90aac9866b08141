//! The connection of a migration.
//!
//! It is QUIC: what is said over it comes in order and once, up to the moment at
//! which it ends. So messages are lost, but only a tail of them; they come late;
//! and each side notices the end at a time of its own, after reading as much of
//! what had come as it likes. Questions and their answers go over connections of
//! their own and may overtake all of this ([`crate::host::manager`]).
//!
//! In post-copy a source makes a new connection in place of the old one. What
//! the old one still has does not count from then on, on either side.
//!
//! A message that comes twice would be a fault of QUIC. The fault
//! [`Repeat`](crate::action::Fault::Repeat) allows for it all the same, for the
//! day on which a control stream is opened anew.

use godwit_shared::wire::peer::{SourceMessage, TargetMessage};

/// Whether the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// There was none, or both sides know that it ended.
    #[default]
    None,
    /// It stands.
    Up,
    /// One side is through and closed it: the other reads what was said, then
    /// notices.
    Closing,
    /// It was cut: the rest may or may not have come through.
    Cut,
}

/// The connection of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Link {
    /// Whether it stands.
    pub state: State,
    /// The source's QEMU has begun to send over it.
    pub carried: bool,
    /// On its way to the target.
    pub to_target: Vec<ToTarget>,
    /// On its way to the source.
    pub to_source: Vec<ToSource>,
    /// The source reads from it.
    pub source_hears: bool,
    /// The target reads from it.
    pub target_hears: bool,
}

/// One side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// From where the guest comes.
    Source,
    /// Where it goes.
    Target,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Source, Self::Target];
}

/// [`SourceMessage`], without names, texts and times. A question has a
/// connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToTarget {
    /// `Prepare`, with the source's epoch.
    Prepare(u64),
    /// `Cancel`.
    Cancel,
    /// `Grant`.
    Grant {
        /// Its epoch.
        epoch: u64,
        /// Whether the CPUs shall run.
        run: bool,
        /// For post-copy.
        early: bool,
    },
    /// `Resume`: the first message of a connection that was made anew.
    Resume,
    /// `Retired`.
    Retired,
    /// `TakenBack`.
    TakenBack,
}

/// [`TargetMessage`], without names, texts and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToSource {
    /// `Prepared`.
    Prepared,
    /// `Blocked`.
    Blocked,
    /// `Loaded`.
    Loaded,
    /// `Taken`, with its epoch.
    Taken(u64),
    /// `ResumeReady`.
    ResumeReady,
    /// `Complete`.
    Complete,
    /// `Failed`.
    Failed,
    /// `Activated`, with its epoch.
    Activated(u64),
    /// `HandBack`, with its epoch.
    HandBack(u64),
}

impl ToTarget {
    /// The model's form of a message on the control stream.
    pub fn of(message: &SourceMessage) -> Option<Self> {
        Some(match message {
            SourceMessage::Prepare(prepare) => Self::Prepare(prepare.epoch.0),
            SourceMessage::Cancel { .. } => Self::Cancel,
            SourceMessage::Grant {
                epoch,
                run,
                postcopy,
                ..
            } => Self::Grant {
                epoch: epoch.0,
                run: *run,
                early: *postcopy,
            },
            SourceMessage::Resume { .. } => Self::Resume,
            SourceMessage::Retired { .. } => Self::Retired,
            SourceMessage::TakenBack { .. } => Self::TakenBack,
            SourceMessage::Query { .. } | SourceMessage::AskTime { .. } => return None,
        })
    }
}

impl ToSource {
    /// The model's form of a message on the control stream.
    pub fn of(message: &TargetMessage) -> Option<Self> {
        Some(match message {
            TargetMessage::Prepared { .. } => Self::Prepared,
            TargetMessage::Blocked { .. } => Self::Blocked,
            TargetMessage::Loaded { .. } => Self::Loaded,
            TargetMessage::Taken { epoch, .. } => Self::Taken(epoch.0),
            TargetMessage::ResumeReady { .. } => Self::ResumeReady,
            TargetMessage::Complete { .. } => Self::Complete,
            TargetMessage::Failed { .. } => Self::Failed,
            TargetMessage::Activated { epoch, .. } => Self::Activated(epoch.0),
            TargetMessage::HandBack { epoch, .. } => Self::HandBack(epoch.0),
            TargetMessage::Verdict { .. } | TargetMessage::Time { .. } => return None,
        })
    }
}

impl Link {
    /// A connection that was just made.
    pub fn open() -> Self {
        Self {
            state: State::Up,
            source_hears: true,
            target_hears: true,
            ..Self::default()
        }
    }

    /// Whether it stands.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether that side may learn now that it ended.
    pub fn may_notice(&self, side: Side) -> bool {
        let (hears, empty) = match side {
            Side::Source => (self.source_hears, self.to_source.is_empty()),
            Side::Target => (self.target_hears, self.to_target.is_empty()),
        };
        hears && (self.state == State::Cut || (self.state == State::Closing && empty))
    }

    /// It is cut.
    pub fn cut(&mut self) {
        if matches!(self.state, State::Up | State::Closing) {
            self.state = State::Cut;
        }
    }

    /// One side reads no more: it is through, knows the end, or is dead.
    pub fn leave(&mut self, side: Side) {
        match side {
            Side::Source => {
                self.source_hears = false;
                self.to_source.clear();
            }
            Side::Target => {
                self.target_hears = false;
                self.to_target.clear();
            }
        }
        if self.state == State::Up {
            self.state = State::Closing;
        }
        if !self.source_hears && !self.target_hears {
            *self = Self::default();
        }
    }

    /// Says something to the target, if the connection stands.
    pub fn tell_target(&mut self, message: ToTarget) {
        if self.is_up() {
            self.to_target.push(message);
        }
    }

    /// Says something to the source, if the connection stands.
    pub fn tell_source(&mut self, message: ToSource) {
        if self.is_up() {
            self.to_source.push(message);
        }
    }
}
