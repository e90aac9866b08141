//! Labels of nodes by number, and the domains that they make.
//!
//! A key with few values (a zone) is *narrow*: the nodes of one pool carry the
//! same value of it. One with many (a rack) is *wide*: its domains are small, so
//! that all nodes of one can be looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// So many values of a narrow key at most.
const NARROW: usize = 8;

#[derive(Debug, Clone, Default)]
pub(super) struct Labels {
    keys: HashMap<String, u32>,
    of: Vec<Key>,
    domains: Vec<Domain>,
}

#[derive(Debug, Clone, Default)]
struct Key {
    values: HashMap<String, u32>,
    wide: bool,
    /// Domains with a node that takes VMs.
    live: u32,
}

/// The nodes with one value of one label.
#[derive(Debug, Clone, Default)]
struct Domain {
    nodes: BTreeSet<u32>,
    live: u32,
}

/// A node's labels: key and domain.
pub(super) type Own = Vec<(u32, u32)>;

impl Labels {
    pub(super) fn key(&mut self, name: &str) -> u32 {
        if let Some(key) = self.keys.get(name) {
            return *key;
        }
        let key = number(self.of.len());
        self.of.push(Key::default());
        self.keys.insert(name.to_owned(), key);
        key
    }

    /// The numbers of those labels; whether a key became wide by them.
    pub(super) fn numbers(&mut self, labels: &BTreeMap<String, String>) -> (Own, bool) {
        let mut widened = false;
        let mut own = Own::new();
        for (name, value) in labels {
            let key = self.key(name);
            let known = &mut self.of[key as usize];
            let domain = match known.values.get(value) {
                Some(domain) => *domain,
                None => {
                    let domain = number(self.domains.len());
                    self.domains.push(Domain::default());
                    known.values.insert(value.clone(), domain);
                    widened |= !known.wide && known.values.len() > NARROW;
                    known.wide = known.values.len() > NARROW;
                    domain
                }
            };
            own.push((key, domain));
        }
        (own, widened)
    }

    /// Key and domain of a label that a VM asks for; no domain has an unknown value.
    pub(super) fn asked(&self, name: &str, value: &str) -> Option<(u32, u32)> {
        let key = *self.keys.get(name)?;
        let domain = self.of[key as usize].values.get(value)?;
        Some((key, *domain))
    }

    pub(super) fn wide(&self, key: u32) -> bool {
        self.of[key as usize].wide
    }

    pub(super) fn narrow(&self, own: &[(u32, u32)]) -> Own {
        let narrow = own.iter().filter(|(key, _)| !self.wide(*key));
        narrow.copied().collect()
    }

    pub(super) fn nodes(&self, domain: u32) -> &BTreeSet<u32> {
        &self.domains[domain as usize].nodes
    }

    pub(super) fn is_live(&self, domain: u32) -> bool {
        self.domains[domain as usize].live > 0
    }

    /// How many domains of the key have a node that takes VMs.
    pub(super) fn live_domains(&self, key: u32) -> u32 {
        self.of[key as usize].live
    }

    pub(super) fn join(&mut self, node: u32, own: &[(u32, u32)], live: bool) {
        for (key, domain) in own {
            let there = &mut self.domains[*domain as usize];
            there.nodes.insert(node);
            if live {
                there.live += 1;
                self.of[*key as usize].live += u32::from(there.live == 1);
            }
        }
    }

    pub(super) fn leave(&mut self, node: u32, own: &[(u32, u32)], live: bool) {
        for (key, domain) in own {
            let there = &mut self.domains[*domain as usize];
            there.nodes.remove(&node);
            if live {
                there.live -= 1;
                self.of[*key as usize].live -= u32::from(there.live == 0);
            }
        }
    }
}

/// The domain of a key among a node's labels.
pub(super) fn domain(own: &[(u32, u32)], key: u32) -> Option<u32> {
    let found = own.iter().find(|(one, _)| *one == key);
    found.map(|(_, domain)| *domain)
}

/// The number of the next of so many things.
pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(super::tree::NONE)
}
