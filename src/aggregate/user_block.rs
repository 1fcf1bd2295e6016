//! A block of users in ascending order: what a merge produces and a run stores.

use super::delta::Sums;

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

    /// The sums of the last user.
    #[inline]
    pub(super) fn last_sums(&mut self) -> Option<&mut Sums> {
        self.users.last_mut().map(|(_, sums)| sums)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.users.len() >= BLOCK_USERS || self.text.len() >= BLOCK_TEXT_BYTES
    }

    /// Whether the last user has this id.
    pub(super) fn ends_with(&self, user_id: &str) -> bool {
        let [.., before, last] = &self.users[..] else {
            return !self.users.is_empty() && self.text == user_id;
        };
        self.text.get(before.0..last.0) == Some(user_id)
    }
}
