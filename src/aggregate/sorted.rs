//! Sorted sums per user, and the merge of several of them. No I/O except reading spilled runs.
//!
//! A merge is a tournament: each source stands at its next user, and each inner node of a binary tree
//! remembers the loser of its match. After the winner moved on, only its path to the root is played again.
//! If several sources have a user, its sums are added up.

use std::cmp::Ordering;
use std::io;

use super::delta::Sums;
use super::sharded_totals::User;
use super::spill::RunReader;

/// The first 24 bytes of a user id, padded with zeros, as numbers with the same order. No id contains a zero
/// byte, so an id is before every longer id that begins with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(u128, u64);

impl Prefix {
    const BYTES: usize = 24;
    /// After every user id: no text contains a byte 0xFF.
    const END: Self = Self(u128::MAX, u64::MAX);

    #[inline]
    pub(super) fn new(bytes: [u8; Self::BYTES]) -> Self {
        let (mut high, mut low) = ([0; 16], [0; 8]);
        high.copy_from_slice(&bytes[..16]);
        low.copy_from_slice(&bytes[16..]);
        Self(u128::from_be_bytes(high), u64::from_be_bytes(low))
    }

    fn of(user_id: &str) -> Self {
        let mut bytes = [0; Self::BYTES];
        let length = user_id.len().min(Self::BYTES);
        bytes[..length].copy_from_slice(&user_id.as_bytes()[..length]);
        Self::new(bytes)
    }

    /// Whether it is the complete id of every user with it.
    fn is_complete(self) -> bool {
        self.1.trailing_zeros() >= 8
    }
}

/// Sums per user in memory: sorted lists, in which each user occurs once.
#[derive(Default)]
pub(crate) struct SortedTotals {
    pub(super) short: Vec<Vec<User>>,
    /// Users with long ids.
    pub(super) long: Vec<(Box<str>, Sums)>,
}

impl SortedTotals {
    /// Without empty lists.
    pub(super) fn without_empty(mut self) -> Self {
        self.short.retain(|users| !users.is_empty());
        self
    }

    /// The number of users.
    pub(super) fn len(&self) -> usize {
        self.short.iter().map(Vec::len).sum::<usize>() + self.long.len()
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let short: usize = self.short.iter().map(Vec::capacity).sum();
        let long = |user: &(Box<str>, Sums)| user.0.len() + size_of::<(Box<str>, Sums)>();
        let lists = self.short.capacity() * size_of::<Vec<User>>();
        lists + short * size_of::<User>() + self.long.iter().map(long).sum::<usize>()
    }

    /// The sources of a merge of them.
    pub(super) fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let short = self.short.iter().map(|users| Source::short(users));
        short.chain([Source::long(&self.long)])
    }
}

/// The most users, and about the most bytes of ids, in a [`UserBlock`].
const BLOCK_USERS: usize = 1024;
const BLOCK_TEXT_BYTES: usize = 64 << 10;

/// Some users with their sums, in ascending order of their ids.
#[derive(Default)]
pub(crate) struct UserBlock {
    text: String,
    /// The end of each id in the text.
    users: Vec<(usize, Sums)>,
}

impl UserBlock {
    /// The users with their sums.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Sums)> {
        let mut start = 0;
        self.users.iter().map(move |(end, sums)| {
            let user_id = self.text.get(start..*end).unwrap_or_default();
            start = *end;
            (user_id, sums)
        })
    }

    /// The user at `index`, whose id begins at `start` in the text; and where that ends.
    pub(super) fn user_at(&self, index: usize, start: usize) -> Option<(&str, &Sums, usize)> {
        let (end, sums) = self.users.get(index)?;
        Some((self.text.get(start..*end).unwrap_or_default(), sums, *end))
    }

    pub(super) fn push(&mut self, user_id: &str, sums: &Sums) {
        self.text.push_str(user_id);
        self.users.push((self.text.len(), *sums));
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    fn is_full(&self) -> bool {
        self.users.len() >= BLOCK_USERS || self.text.len() >= BLOCK_TEXT_BYTES
    }

    /// Whether the last user has this id.
    fn ends_with(&self, user_id: &str) -> bool {
        let [.., before, last] = &self.users[..] else {
            return !self.users.is_empty() && self.text == user_id;
        };
        self.text.get(before.0..last.0) == Some(user_id)
    }
}

/// A sorted list of a merge, at its next user.
pub(super) struct Source<'s> {
    /// Of the next user; [`Prefix::END`] at the end.
    prefix: Prefix,
    list: List<'s>,
}

enum List<'s> {
    Short(&'s [User]),
    Long(&'s [(Box<str>, Sums)]),
    Run(RunReader<'s>),
}

impl<'s> Source<'s> {
    fn short(users: &'s [User]) -> Self {
        let prefix = users.first().map_or(Prefix::END, User::prefix);
        let list = List::Short(users);
        Self { prefix, list }
    }

    fn long(users: &'s [(Box<str>, Sums)]) -> Self {
        let prefix = users
            .first()
            .map_or(Prefix::END, |user| Prefix::of(&user.0));
        let list = List::Long(users);
        Self { prefix, list }
    }

    pub(super) fn run(run: RunReader<'s>) -> Self {
        let prefix = run
            .next_user()
            .map_or(Prefix::END, |user| Prefix::of(user.0));
        let list = List::Run(run);
        Self { prefix, list }
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
    sources: Vec<Source<'s>>,
    /// The loser of the match at each inner node; node 1 is the final, and the children of `n` are `2n` and
    /// `2n + 1`. The sources are the leaves.
    losers: Vec<usize>,
    winner: usize,
}

impl<'s> Tournament<'s> {
    fn new(sources: Vec<Source<'s>>) -> Self {
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
    fn winner(&self) -> Option<&Source<'s>> {
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
    sources: Vec<Source<'_>>,
    mut each: impl FnMut(UserBlock) -> io::Result<bool>,
) -> io::Result<()> {
    let present = |source: &Source<'_>| source.prefix != Prefix::END;
    let mut tournament = Tournament::new(sources.into_iter().filter(present).collect());
    let mut block = UserBlock::default();
    let mut last = Prefix::END;
    while let Some(source) = tournament.winner()
        && let Some((user_id, sums)) = source.next_user()
    {
        // A complete prefix is the whole id.
        let is_same = last == source.prefix && (last.is_complete() || block.ends_with(user_id));
        if is_same && let Some((_, all)) = block.users.last_mut() {
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
    if !block.users.is_empty() {
        each(block)?;
    }
    Ok(())
}
