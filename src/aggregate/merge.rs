//! The merge of several sorted sources of sums per user. No I/O except reading spilled runs.
//!
//! A merge is a tournament: each source stands at its next user, and each inner node of a binary tree
//! remembers the loser of its match. After the winner moved on, only its path to the root is played again.
//! If several sources have a user, its sums are added up.

use std::cmp::Ordering;
use std::io;

use super::delta::Sums;
use super::run::{Run, RunReader};
use super::user::{Prefix, User};
use super::user_block::UserBlock;

/// A sorted list of a merge, at its next user.
pub(super) struct SortedSource<'s> {
    /// Of the next user; [`Prefix::END`] at the end.
    prefix: Prefix,
    list: List<'s>,
}

enum List<'s> {
    Short(&'s [User]),
    Long(&'s [(Box<str>, Sums)]),
    Run(RunReader<'s>),
}

impl<'s> SortedSource<'s> {
    pub(super) fn short(users: &'s [User]) -> Self {
        let prefix = users.first().map_or(Prefix::END, User::prefix);
        let list = List::Short(users);
        Self { prefix, list }
    }

    pub(super) fn long(users: &'s [(Box<str>, Sums)]) -> Self {
        let prefix = users
            .first()
            .map_or(Prefix::END, |user| Prefix::of(&user.0));
        let list = List::Long(users);
        Self { prefix, list }
    }

    /// Reads a run from its start.
    pub(super) fn run(run: &'s Run) -> io::Result<Self> {
        let run = run.read()?;
        let prefix = run
            .next_user()
            .map_or(Prefix::END, |user| Prefix::of(user.0));
        let list = List::Run(run);
        Ok(Self { prefix, list })
    }

    fn next_user(&self) -> Option<(&str, &Sums)> {
        match &self.list {
            List::Short(users) => users.first().map(|user| (user.user_id(), &user.sums)),
            List::Long(users) => users.first().map(|user| (&*user.0, &user.1)),
            List::Run(run) => run.next_user(),
        }
    }

    fn next_id(&self) -> Option<&str> {
        self.next_user().map(|user| user.0)
    }

    #[inline]
    fn advance(&mut self) -> io::Result<()> {
        self.prefix = match &mut self.list {
            List::Short(users) => {
                *users = users.get(1..).unwrap_or_default();
                users.first().map_or(Prefix::END, User::prefix)
            }
            List::Long(users) => {
                *users = users.get(1..).unwrap_or_default();
                users
                    .first()
                    .map_or(Prefix::END, |user| Prefix::of(&user.0))
            }
            List::Run(run) => {
                run.advance()?;
                run.next_user()
                    .map_or(Prefix::END, |user| Prefix::of(user.0))
            }
        };
        Ok(())
    }

    #[inline]
    fn order(&self, other: &Self) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| {
            if self.prefix.is_complete() {
                return Ordering::Equal;
            }
            self.next_id().cmp(&other.next_id())
        })
    }
}

struct Tournament<'s> {
    sources: Vec<SortedSource<'s>>,
    /// The loser of the match at each inner node; node 1 is the final, and the children of `n` are `2n` and
    /// `2n + 1`. The sources are the leaves.
    losers: Vec<usize>,
    winner: usize,
}

impl<'s> Tournament<'s> {
    fn new(sources: Vec<SortedSource<'s>>) -> Self {
        let leaves = sources.len().next_power_of_two();
        let mut tournament = Self {
            sources,
            losers: vec![0; leaves],
            winner: 0,
        };
        let mut winners: Vec<usize> = (0..leaves * 2)
            .map(|node| node.saturating_sub(leaves))
            .collect();
        for node in (1..leaves).rev() {
            let (left, right) = (winners[node * 2], winners[node * 2 + 1]);
            let (winner, loser) = if tournament.is_before(right, left) {
                (right, left)
            } else {
                (left, right)
            };
            winners[node] = winner;
            tournament.losers[node] = loser;
        }
        tournament.winner = winners[1];
        tournament
    }

    /// Missing sources are after all others.
    #[inline]
    fn is_before(&self, a: usize, b: usize) -> bool {
        match (self.sources.get(a), self.sources.get(b)) {
            (Some(a), Some(b)) => a.order(b) == Ordering::Less,
            (a, _) => a.is_some(),
        }
    }

    /// The source with the first of all users.
    fn winner(&self) -> Option<&SortedSource<'s>> {
        self.sources.get(self.winner)
    }

    /// Moves past the first of all users.
    #[inline]
    fn advance(&mut self) -> io::Result<()> {
        let mut winner = self.winner;
        if let Some(source) = self.sources.get_mut(winner) {
            source.advance()?;
        }
        let mut node = (self.losers.len() + winner) >> 1;
        while node > 0 {
            if self.is_before(self.losers[node], winner) {
                std::mem::swap(&mut self.losers[node], &mut winner);
            }
            node /= 2;
        }
        self.winner = winner;
        Ok(())
    }
}

/// Merges sorted sources: calls `each` with blocks of users in ascending order, each user once, until it
/// returns false.
pub(super) fn merge(
    sources: Vec<SortedSource<'_>>,
    mut each: impl FnMut(UserBlock) -> io::Result<bool>,
) -> io::Result<()> {
    let present = |source: &SortedSource<'_>| source.prefix != Prefix::END;
    let mut tournament = Tournament::new(sources.into_iter().filter(present).collect());
    let mut block = UserBlock::default();
    let mut last = Prefix::END;
    while let Some(source) = tournament.winner()
        && let Some((user_id, sums)) = source.next_user()
    {
        // A complete prefix is the whole id.
        let is_same = last == source.prefix && (last.is_complete() || block.ends_with(user_id));
        if is_same && let Some(all) = block.last_sums() {
            all.add(sums);
        } else {
            if block.is_full() && !each(std::mem::take(&mut block))? {
                return Ok(());
            }
            last = source.prefix;
            block.push(user_id, sums);
        }
        tournament.advance()?;
    }
    if !block.is_empty() {
        each(block)?;
    }
    Ok(())
}
