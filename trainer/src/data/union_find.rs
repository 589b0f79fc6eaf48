//! Sets that are joined until nothing is left to join.

/// Disjoint sets over `0..n`; every set is named by its smallest member, so the names don't depend on the order of
/// joins.
#[derive(Clone, Debug)]
pub(super) struct UnionFind {
    parents: Vec<u32>,
}

impl UnionFind {
    /// Every member a set of its own.
    pub(super) fn new(n: u32) -> Self {
        Self { parents: (0..n).collect() }
    }

    /// The name of the set of `member`.
    pub(super) fn find(&mut self, mut member: u32) -> u32 {
        while self.parents[member as usize] != member {
            let above = self.parents[member as usize];
            // Path halving: with it alone, a find takes logarithmic time on average.
            self.parents[member as usize] = self.parents[above as usize];
            member = above;
        }
        member
    }

    /// Makes one set of the two.
    pub(super) fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        self.parents[a.max(b) as usize] = a.min(b);
    }

    /// The name of every member's set.
    pub(super) fn names(mut self) -> Vec<u32> {
        let n = u32::try_from(self.parents.len()).unwrap_or(u32::MAX);
        (0..n).map(|member| self.find(member)).collect()
    }
}
