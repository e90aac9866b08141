//! Who takes how much of the node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_shared::model::{Capacity, Problem, Usage, VmId, codes};

/// What running domains have reserved of the node's capacity. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    capacity: Capacity,
    taken: Mutex<BTreeMap<VmId, Usage>>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(capacity: Capacity) -> Self {
        Self(Arc::new(Shared {
            capacity,
            taken: Mutex::default(),
        }))
    }

    /// Reserves, or says what is missing. What the VM has reserved already is
    /// replaced.
    pub fn reserve(&self, vm: VmId, usage: Usage) -> Result<(), Problem> {
        let mut taken = self.taken();
        self.fits(&taken, vm, usage)?;
        taken.insert(vm, usage);
        Ok(())
    }

    /// Whether it could be reserved now.
    pub fn check(&self, vm: VmId, usage: Usage) -> Result<(), Problem> {
        self.fits(&self.taken(), vm, usage)
    }

    /// Notes what a domain takes that runs already, fit or not.
    pub fn hold(&self, vm: VmId, usage: Usage) {
        self.taken().insert(vm, usage);
    }

    /// Gives back what the VM had reserved.
    pub fn release(&self, vm: VmId) {
        self.taken().remove(&vm);
    }

    fn fits(&self, taken: &BTreeMap<VmId, Usage>, vm: VmId, usage: Usage) -> Result<(), Problem> {
        let others = taken
            .iter()
            .filter(|(other, _)| **other != vm)
            .fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage));
        let capacity = self.0.capacity;
        if others.plus(usage).fits(capacity) {
            return Ok(());
        }
        let free_vcpus = capacity.vcpus.saturating_sub(others.vcpus);
        let free_memory = capacity.memory.saturating_sub(others.memory);
        let (field, value) = if usage.memory > free_memory {
            ("memory", usage.memory.to_string())
        } else {
            ("cpu.count", usage.vcpus.to_string())
        };
        let text = format!(
            "the node has {free_vcpus} vCPUs and {free_memory} left, and the VM needs {} and {}",
            usage.vcpus, usage.memory
        );
        Err(Problem::new(codes::INSUFFICIENT_RESOURCES, text)
            .field(field)
            .value(value)
            .remedy("choose another node, or stop or move VMs that run on this one"))
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<VmId, Usage>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use godwit_shared::model::MiB;

    use super::*;

    fn usage(vcpus: u32, memory: u64) -> Usage {
        Usage {
            vcpus,
            memory: MiB(memory),
        }
    }

    #[test]
    fn what_is_reserved_is_gone_until_it_is_released() {
        let ledger = Ledger::new(Capacity {
            vcpus: 4,
            memory: MiB(100),
        });
        let (a, b) = (VmId::from_u128(1), VmId::from_u128(2));
        ledger.reserve(a, usage(2, 60)).unwrap();
        ledger.reserve(a, usage(2, 60)).unwrap();
        let refused = ledger.reserve(b, usage(1, 50)).unwrap_err();
        assert_eq!(refused.code, codes::INSUFFICIENT_RESOURCES);
        assert_eq!(refused.field.as_deref(), Some("memory"));
        assert_eq!(
            ledger.check(b, usage(3, 1)).unwrap_err().field.as_deref(),
            Some("cpu.count")
        );
        ledger.release(a);
        ledger.reserve(b, usage(4, 100)).unwrap();
        ledger.hold(a, usage(9, 900));
        assert!(ledger.check(b, usage(1, 1)).is_err());
    }
}
