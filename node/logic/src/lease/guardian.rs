//! What a guardian decides: whom it watches, and when it ends them.
//!
//! The guardian is a process of its own beside the daemon. It is told the end of
//! the node's lease and the QEMUs that run under it, and ends all of them when
//! that end comes, whatever has become of the daemon.
//!
//! # Invariants
//! * Whoever is watched when the end has come is ended, also when a new lease comes
//!   before that was noticed: the host may have slept, and its VMs may run elsewhere.
//! * Nobody is watched without a lease that holds: who comes late is ended at once.
//! * Who was ended stays known, so that a later daemon learns why a guest is gone.

use std::collections::BTreeSet;

use godwit_shared::model::BootMillis;

/// So many of those that were ended are remembered.
const REMEMBERED: usize = 4096;

/// A guardian of processes that are named by `P`.
#[derive(Debug, Clone)]
pub struct Guardian<P> {
    stop_at: Option<BootMillis>,
    /// They run under the lease.
    watched: BTreeSet<P>,
    /// They are to be ended, and not gone yet.
    doomed: BTreeSet<P>,
    /// They were ended here.
    ended: BTreeSet<P>,
}

impl<P: Ord + Clone> Default for Guardian<P> {
    fn default() -> Self {
        Self {
            stop_at: None,
            watched: BTreeSet::new(),
            doomed: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }
}

impl<P: Ord + Clone> Guardian<P> {
    /// The lease ends then, or later than that.
    pub fn extend(&mut self, now: BootMillis, stop_at: BootMillis) {
        self.look(now);
        self.stop_at = self.stop_at.max(Some(stop_at));
    }

    /// When whoever is watched is ended.
    pub fn stop_at(&self) -> Option<BootMillis> {
        self.stop_at
    }

    /// Watches a process from now on. Whether it may run.
    pub fn watch(&mut self, now: BootMillis, process: P) -> bool {
        self.look(now);
        if self.doomed.contains(&process) {
            return false;
        }
        self.watched.insert(process);
        self.look(now);
        self.holds(now)
    }

    /// The process has ended.
    pub fn gone(&mut self, process: &P) {
        self.watched.remove(process);
        self.doomed.remove(process);
    }

    /// Whoever has to be ended now: named each time until it is gone.
    pub fn due(&mut self, now: BootMillis) -> Vec<P> {
        self.look(now);
        self.doomed.iter().cloned().collect()
    }

    /// Whether it was ended here.
    pub fn ended(&self, process: &P) -> bool {
        self.ended.contains(process)
    }

    /// Whoever is watched or to be ended.
    pub fn all(&self) -> impl Iterator<Item = &P> {
        self.watched.iter().chain(&self.doomed)
    }

    /// Whether there is nobody to watch or to end.
    pub fn idle(&self) -> bool {
        self.watched.is_empty() && self.doomed.is_empty()
    }

    fn holds(&self, now: BootMillis) -> bool {
        self.stop_at.is_some_and(|stop| now < stop)
    }

    fn look(&mut self, now: BootMillis) {
        if self.holds(now) {
            return;
        }
        for process in std::mem::take(&mut self.watched) {
            self.ended.insert(process.clone());
            self.doomed.insert(process);
        }
        while self.ended.len() > REMEMBERED {
            self.ended.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_ends_with_the_lease_and_nobody_before() {
        let mut guardian = Guardian::default();
        guardian.extend(BootMillis(0), BootMillis(100));
        assert!(guardian.watch(BootMillis(1), 'a'));
        assert!(guardian.watch(BootMillis(2), 'b'));
        assert!(guardian.due(BootMillis(99)).is_empty());
        guardian.extend(BootMillis(99), BootMillis(200));
        guardian.extend(BootMillis(99), BootMillis(150));
        assert!(guardian.due(BootMillis(199)).is_empty(), "it was renewed");
        guardian.gone(&'b');
        assert_eq!(guardian.due(BootMillis(200)), ['a']);
        assert_eq!(guardian.due(BootMillis(201)), ['a'], "until it is gone");
        guardian.gone(&'a');
        assert!(guardian.idle() && guardian.ended(&'a') && !guardian.ended(&'b'));
    }

    #[test]
    fn nobody_is_watched_without_a_lease() {
        let mut guardian = Guardian::default();
        assert!(!guardian.watch(BootMillis(1), 'a'));
        guardian.extend(BootMillis(2), BootMillis(10));
        assert!(!guardian.watch(BootMillis(10), 'b'), "it is over");
        assert_eq!(guardian.due(BootMillis(10)), ['a', 'b']);
        guardian.extend(BootMillis(11), BootMillis(20));
        assert!(guardian.watch(BootMillis(11), 'c'), "a new one");
        assert!(!guardian.watch(BootMillis(11), 'b'), "it stays doomed");
        assert_eq!(guardian.due(BootMillis(12)), ['a', 'b']);
    }

    #[test]
    fn a_new_lease_saves_nobody_who_outlived_the_last_one() {
        let mut guardian = Guardian::default();
        guardian.extend(BootMillis(0), BootMillis(100));
        assert!(guardian.watch(BootMillis(1), 'a'));
        // The host slept, and the daemon was heard before the guardian looked.
        guardian.extend(BootMillis(5_000), BootMillis(6_000));
        assert_eq!(guardian.due(BootMillis(5_001)), ['a']);
    }
}
