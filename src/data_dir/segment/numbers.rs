//! Sets of segment numbers, stored as ranges. The numbers of a data directory usually form one range,
//! even with hundreds of thousands of segments.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A set of segment numbers. Its size in memory is proportional to the number of ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The first number of each range, mapped to its last; ranges neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
}

impl Numbers {
    /// The ranges, ascending; they neither overlap nor touch.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = RangeInclusive<u64>> + '_ {
        self.ranges.iter().map(|(&first, &last)| first..=last)
    }

    /// Whether the set contains the number.
    pub fn contains(&self, number: u64) -> bool {
        self.around(number).is_some()
    }

    /// Whether `others` is a subset.
    pub fn contains_all(&self, others: &Self) -> bool {
        let within = |range: RangeInclusive<u64>| {
            let around = self.around(*range.start());
            around.is_some_and(|around| range.end() <= around.end())
        };
        others.ranges().all(within)
    }

    /// The highest number; `None` if the set is empty.
    pub fn last(&self) -> Option<u64> {
        self.ranges.last_key_value().map(|(_, &last)| last)
    }

    /// The first number from `from` on that is not in the set.
    pub fn first_free(&self, from: u64) -> u64 {
        let around = self.around(from);
        around.map_or(from, |range| range.end().saturating_add(1))
    }

    /// Adds a number; returns whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        let is_new = !self.contains(number);
        if is_new {
            self.insert_range(number..=number);
        }
        is_new
    }

    /// Adds all numbers of a range; an empty range adds nothing.
    pub fn insert_range(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = range.into_inner();
        if first > last {
            return;
        }
        // Merge every range that overlaps or touches the new one.
        let reach = last.saturating_add(1);
        while let Some((&start, &end)) = self.ranges.range(..=reach).next_back()
            && end.saturating_add(1) >= first
        {
            first = first.min(start);
            last = last.max(end);
            self.ranges.remove(&start);
        }
        self.ranges.insert(first, last);
    }

    /// Removes a number; returns whether it was in the set.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some(range) = self.around(number) else {
            return false;
        };
        let (first, last) = range.into_inner();
        self.ranges.remove(&first);
        if first < number {
            self.ranges.insert(first, number - 1);
        }
        if number < last {
            self.ranges.insert(number + 1, last);
        }
        true
    }

    fn around(&self, number: u64) -> Option<RangeInclusive<u64>> {
        let (&first, &last) = self.ranges.range(..=number).next_back()?;
        (number <= last).then_some(first..=last)
    }
}

impl Extend<u64> for Numbers {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, numbers: I) {
        for number in numbers {
            self.insert(number);
        }
    }
}

impl FromIterator<u64> for Numbers {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut all = Self::default();
        all.extend(numbers);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn consecutive_numbers_form_one_range_in_any_order() {
        let numbers: Numbers = (1..=1000).rev().step_by(2).chain(1..=999).collect();
        assert_eq!(numbers.ranges().collect::<Vec<_>>(), [1..=1000]);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_btree_set(changes in prop::collection::vec((0u8..3, 0u64..40, 0u64..6), 0..60)) {
            let (mut numbers, mut model) = (Numbers::default(), BTreeSet::new());
            for (change, number, length) in changes {
                match change {
                    0 => prop_assert_eq!(numbers.insert(number), model.insert(number)),
                    1 => prop_assert_eq!(numbers.remove(number), model.remove(&number)),
                    _ => {
                        numbers.insert_range(number..=number + length);
                        model.extend(number..=number + length);
                    }
                }
                let ranges: Vec<_> = numbers.ranges().collect();
                prop_assert!(ranges.windows(2).all(|two| two[0].end() + 1 < *two[1].start()));
                prop_assert_eq!(ranges.into_iter().flatten().collect::<BTreeSet<_>>(), model.clone());
                prop_assert_eq!(numbers.last(), model.last().copied());
            }
            for number in 0..50 {
                prop_assert_eq!(numbers.contains(number), model.contains(&number));
                let free = (number..=100).find(|number| !model.contains(number));
                prop_assert_eq!(Some(numbers.first_free(number)), free);
                let mut more = numbers.clone();
                let is_new = more.insert(number);
                prop_assert!(more.contains_all(&numbers));
                prop_assert_eq!(numbers.contains_all(&more), !is_new);
            }
        }
    }
}
