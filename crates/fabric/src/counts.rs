//! Counts by place. A role stands in a handful of places, so a sorted list is smaller and quicker than a tree.

/// How many there are in each place that has any, by the place's number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(Vec<(u32, u32)>);

impl Counts {
    /// How many there are in a place.
    pub(crate) fn at(&self, place: usize) -> u32 {
        self.find(place).map_or(0, |at| self.0[at].1)
    }

    /// Whether there is one in a place.
    pub(crate) fn has(&self, place: usize) -> bool {
        self.find(place).is_ok()
    }

    pub(crate) fn add(&mut self, place: usize, by: u32) {
        match self.find(place) {
            Ok(at) => self.0[at].1 += by,
            Err(at) => self.0.insert(at, (place as u32, by)),
        }
    }

    pub(crate) fn take(&mut self, place: usize, by: u32) {
        let Ok(at) = self.find(place) else { return };
        self.0[at].1 = self.0[at].1.saturating_sub(by);
        if self.0[at].1 == 0 {
            self.0.remove(at);
        }
    }

    /// In how many places there are any.
    pub(crate) fn places(&self) -> usize {
        self.0.len()
    }

    /// How many there are in all.
    pub(crate) fn total(&self) -> u32 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn find(&self, place: usize) -> Result<usize, usize> {
        self.0.binary_search_by_key(&(place as u32), |(place, _)| *place)
    }
}
