//! Sets of nodes: who is cut off, who votes. They are asked many times a simulated second.

/// Index of a host; the controller is one past the last.
pub(crate) type Node = usize;

/// A set of nodes, of which there are at most 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nodes([u64; 4]);

impl Nodes {
    pub(crate) fn contains(&self, node: Node) -> bool {
        self.0[node / 64] >> (node % 64) & 1 == 1
    }
}

impl FromIterator<Node> for Nodes {
    fn from_iter<I: IntoIterator<Item = Node>>(nodes: I) -> Nodes {
        let mut set = Nodes::default();
        nodes.into_iter().for_each(|node| set.0[node / 64] |= 1 << (node % 64));
        set
    }
}
