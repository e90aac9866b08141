//! A simulated coordinator's recordings, as a real one's daemon writes them: a
//! file for each of its lives, and another one whenever that many steps are in it.

use godwit_coordinator_logic::cluster::{Cluster, Settings};
use godwit_coordinator_logic::effect::Effect;
use godwit_coordinator_logic::recording::{Began, Entry, Taken, frozen, line, loaded, records};
use godwit_shared::model::UnixMillis;

/// Steps in one file.
const FILE: u64 = 40;

/// What was written so far.
#[derive(Debug, Default)]
pub struct Recorder {
    /// The files, oldest first.
    pub files: Vec<Vec<u8>>,
    steps: u64,
    here: u64,
}

impl Recorder {
    /// The daemon starts from its store.
    pub(crate) fn start(
        &mut self,
        settings: Settings,
        now: UnixMillis,
        store: impl IntoIterator<Item = (String, Vec<u8>)>,
        effects: Vec<Effect>,
    ) {
        (self.steps, self.here) = (0, 0);
        self.files.push(line::FIRST.into());
        let began = Entry::Began(Began { settings, steps: 0 });
        self.write(&began);
        for entry in records(store).chain([loaded(now, effects)]).flatten() {
            self.write(&entry);
        }
    }

    /// It took a step, and stands so behind it.
    pub(crate) fn step(&mut self, taken: Taken, behind: &Cluster) {
        self.steps += 1;
        self.here += 1;
        if let Ok(entry) = taken.entry(self.steps) {
            self.write(&entry);
        }
        if self.here == FILE {
            self.here = 0;
            self.files.push(line::FIRST.into());
            for entry in frozen(behind, self.steps).flatten() {
                self.write(&entry);
            }
        }
    }

    fn write(&mut self, entry: &Entry) {
        if let (Some(file), Ok(line)) = (self.files.last_mut(), line::of(entry)) {
            file.extend(line);
        }
    }
}
