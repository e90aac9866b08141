//! What operators are told of leases and of protected VMs: how it stands, and
//! what will happen when.

use godwit_shared::api::{LeaseState, LeaseView, ProtectionView};
use godwit_shared::model::{Millis, NodeId};

use super::Cluster;
use super::lease::Held;
use crate::record::{LeaseRecord, VmRecord};

impl Cluster {
    pub(super) fn lease_view(&self, node: &NodeId) -> Option<LeaseView> {
        let (record, held) = self.lease(node)?;
        let now = self.observed.leases.now;
        let left = held.map_or(Millis::ZERO, |held| now.until(held.until));
        let state = match (&record.fenced, left) {
            (Some(_), _) => LeaseState::Fenced,
            (None, Millis::ZERO) => LeaseState::Ending,
            (None, _) => LeaseState::Held,
        };
        Some(LeaseView {
            state,
            renewed: held.and_then(|held| held.renewed),
            through: held.and_then(|held| held.through.clone()),
            left,
            length: record.length,
            margin: record.margin,
            circle: record.circle.members.clone(),
            fenced: record.fenced.as_ref().map(|fenced| fenced.by),
            next: self.outlook(node, state, record, held),
        })
    }

    fn outlook(
        &self,
        node: &NodeId,
        state: LeaseState,
        record: &LeaseRecord,
        held: Option<&Held>,
    ) -> String {
        let through = held.and_then(|held| held.through.as_ref());
        match (state, self.is_up(node), through) {
            (LeaseState::Held, true, _) => "it is renewed while the node is connected".into(),
            (LeaseState::Held, false, Some(peer)) => {
                format!("the node has no session and renews it through {peer}: nothing is stopped")
            }
            (LeaseState::Held, false, None) => format!(
                "unless it is renewed, or a majority of its circle vouches for it, {node} stops its protected VMs when it ends; they are started elsewhere {} after that",
                record.margin
            ),
            (LeaseState::Ending, true, _) => format!("{node} is connected and does not renew it"),
            (LeaseState::Ending, false, _) => format!(
                "{node} has stopped its protected VMs unless its circle vouches for it; a majority of the circle has to promise not to before they are started elsewhere"
            ),
            (LeaseState::Fenced, _, _) => {
                format!("{node} runs no protected VM; when it returns it gets a lease anew")
            }
        }
    }

    pub(super) fn protection_view(&self, record: &VmRecord) -> Option<ProtectionView> {
        if !record.spec.protected() {
            return None;
        }
        let rescue = record.rescue.as_ref();
        let waiting = self.observed.leases.waiting.get(&record.id);
        let next = match (rescue, waiting) {
            (Some(_), Some(waiting)) if waiting.message.is_empty() => {
                format!(
                    "is started again after its delay of {}",
                    record.spec.restart_delay
                )
            }
            (Some(_), Some(waiting)) => waiting.message.clone(),
            (Some(_), None) => "is started again".to_owned(),
            (None, _) => "is started again when its node is lost".to_owned(),
        };
        Some(ProtectionView {
            lost: rescue.map(|rescue| rescue.from.clone()),
            since: rescue.map(|rescue| rescue.since),
            next,
        })
    }
}
