//! Nodes in the order of what is free on them, with what the best of many offers.
//!
//! A treap for each pool, all in one arena with a vertex for each node. Nodes are
//! in the order of a Z curve through the shares of memory and vCPUs that are
//! left, so that those of one part of the tree are alike. Each vertex knows of
//! its part the ranges of those shares, the most that is free, the first name,
//! and the most along the directions that the scorers' weights point to: enough
//! for an upper bound of the score of every node below it.

/// No vertex.
pub(super) const NONE: u32 = u32::MAX;
/// For so many sets of weights the best sum is kept; for others the ranges do.
pub(super) const DIRECTIONS: usize = 4;

/// What the nodes of a part of a tree have free.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    /// The least share of memory, and of vCPUs, in thousandths.
    pub(super) low: [f32; 2],
    /// The largest.
    pub(super) high: [f32; 2],
    /// The most memory, in MiB.
    pub(super) memory: u64,
    /// The most vCPUs.
    pub(super) vcpus: u32,
    /// The first in the order of names.
    pub(super) first: u64,
    /// The most along each direction.
    pub(super) along: [f32; DIRECTIONS],
}

impl Span {
    fn join(&mut self, other: &Self) {
        for axis in 0..2 {
            self.low[axis] = self.low[axis].min(other.low[axis]);
            self.high[axis] = self.high[axis].max(other.high[axis]);
        }
        for (mine, theirs) in self.along.iter_mut().zip(other.along) {
            *mine = mine.max(theirs);
        }
        self.memory = self.memory.max(other.memory);
        self.vcpus = self.vcpus.max(other.vcpus);
        self.first = self.first.min(other.first);
    }

    /// The node's place on the Z curve.
    fn curve(&self) -> u32 {
        spread(self.high[0]) | spread(self.high[1]) << 1
    }
}

/// The ten bits of a share, with room for another's between them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share is 0 to 1000; anything else is clamped by the cast"
)]
fn spread(share: f32) -> u32 {
    let mut bits = (share as u32).min(1023);
    bits = (bits | bits << 8) & 0x00ff_00ff;
    bits = (bits | bits << 4) & 0x0f0f_0f0f;
    bits = (bits | bits << 2) & 0x3333_3333;
    (bits | bits << 1) & 0x5555_5555
}

#[derive(Debug, Clone)]
struct Vertex {
    key: (u32, u64),
    priority: u32,
    left: u32,
    right: u32,
    own: Span,
    all: Span,
}

/// The vertices of every tree, by number of the node.
#[derive(Debug, Clone, Default)]
pub(super) struct Arena {
    vertices: Vec<Vertex>,
}

impl Arena {
    /// What is free in the part of the tree below the vertex, and on its own node.
    pub(super) fn all(&self, vertex: u32) -> &Span {
        &self.vertices[vertex as usize].all
    }

    /// What is free on the vertex's own node.
    pub(super) fn own(&self, vertex: u32) -> &Span {
        &self.vertices[vertex as usize].own
    }

    pub(super) fn children(&self, vertex: u32) -> [u32; 2] {
        let vertex = &self.vertices[vertex as usize];
        [vertex.left, vertex.right]
    }

    /// Puts the node into a tree that it is not in.
    pub(super) fn insert(&mut self, root: &mut u32, node: u32, own: Span) {
        let vertex = Vertex {
            key: (own.curve(), own.first),
            priority: node
                .wrapping_add(1)
                .wrapping_mul(0x9e37_79b1)
                .rotate_left(15)
                ^ node,
            left: NONE,
            right: NONE,
            own,
            all: own,
        };
        while self.vertices.len() <= node as usize {
            self.vertices.push(vertex.clone());
        }
        self.vertices[node as usize] = vertex;
        *root = self.add(*root, node);
    }

    /// Takes the node out of the tree that it is in.
    pub(super) fn remove(&mut self, root: &mut u32, node: u32) {
        *root = self.cut(*root, node);
    }

    fn add(&mut self, root: u32, node: u32) -> u32 {
        if root == NONE {
            return node;
        }
        let (here, new) = (&self.vertices[root as usize], &self.vertices[node as usize]);
        let (before, above) = (new.key < here.key, new.priority > here.priority);
        let (left, right) = (here.left, here.right);
        if above {
            let key = new.key;
            let (left, right) = self.split(root, key);
            self.hang(node, left, right)
        } else if before {
            let left = self.add(left, node);
            self.hang(root, left, right)
        } else {
            let right = self.add(right, node);
            self.hang(root, left, right)
        }
    }

    fn cut(&mut self, root: u32, node: u32) -> u32 {
        if root == NONE {
            return NONE;
        }
        let [left, right] = self.children(root);
        if root == node {
            return self.merge(left, right);
        }
        if self.vertices[node as usize].key < self.vertices[root as usize].key {
            let left = self.cut(left, node);
            self.hang(root, left, right)
        } else {
            let right = self.cut(right, node);
            self.hang(root, left, right)
        }
    }

    fn split(&mut self, root: u32, key: (u32, u64)) -> (u32, u32) {
        if root == NONE {
            return (NONE, NONE);
        }
        let [left, right] = self.children(root);
        if self.vertices[root as usize].key < key {
            let (low, high) = self.split(right, key);
            (self.hang(root, left, low), high)
        } else {
            let (low, high) = self.split(left, key);
            (low, self.hang(root, high, right))
        }
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE {
            return right;
        }
        if right == NONE {
            return left;
        }
        let priority = |vertex: u32| self.vertices[vertex as usize].priority;
        if priority(left) > priority(right) {
            let [outer, inner] = self.children(left);
            let inner = self.merge(inner, right);
            self.hang(left, outer, inner)
        } else {
            let [inner, outer] = self.children(right);
            let inner = self.merge(left, inner);
            self.hang(right, inner, outer)
        }
    }

    /// Hangs both under the vertex, which then knows of them.
    fn hang(&mut self, root: u32, left: u32, right: u32) -> u32 {
        let mut all = self.vertices[root as usize].own;
        for child in [left, right] {
            if child != NONE {
                all.join(&self.vertices[child as usize].all);
            }
        }
        let vertex = &mut self.vertices[root as usize];
        (vertex.left, vertex.right, vertex.all) = (left, right, all);
        root
    }
}
