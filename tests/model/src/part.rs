//! Parts of a state that many states have in common.
//!
//! A step changes one or two parts; the others are shared with the state before.
//! Each part knows its hash, so that telling two states apart costs a few words.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A shared part. Change it through [`edit`](Self::edit), and
/// [`seal`](Self::seal) it at the end of the step.
#[derive(Debug, Clone)]
pub struct Part<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash + Clone> Part<T> {
    /// A new part.
    pub fn new(value: T) -> Self {
        let hash = hash_of(&value);
        Self {
            value: Arc::new(value),
            hash,
        }
    }

    /// The part, to be changed. It is no longer shared from here on.
    pub fn edit(&mut self) -> &mut T {
        Arc::make_mut(&mut self.value)
    }

    /// Counts the hash anew where the part was touched since `before`.
    pub fn seal(&mut self, before: &Self) {
        if Arc::ptr_eq(&self.value, &before.value) {
            return;
        }
        self.hash = hash_of(&*self.value);
    }
}

fn hash_of<T: Hash>(value: &T) -> u64 {
    // Fixed seeds: the search has to be the same in every run.
    ahash::RandomState::with_seeds(11, 13, 17, 19).hash_one(value)
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value) || self.value == other.value
    }
}

impl<T: Eq> Eq for Part<T> {}

impl<T> Hash for Part<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}
