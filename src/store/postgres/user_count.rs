//! The number of users of all nodes. A user may be at several nodes, so the rows must be counted, which takes
//! long with many of them. The last result is kept and reused.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::{Cluster, StoreError};

/// A count is reused for this many times as long as counting took.
const REUSE_FACTOR: u32 = 20;

/// The last count.
#[derive(Debug, Default)]
pub(super) struct UserCount(Mutex<Option<Counted>>);

#[derive(Debug)]
struct Counted {
    users: u64,
    /// Users and events of each node when they were counted.
    of: Vec<(u64, u64)>,
    reuse_until: Instant,
}

impl UserCount {
    /// The number of users: the last count if it is recent, or if nothing was applied since. Otherwise `count`
    /// is called. Meanwhile other threads get the last count.
    pub(super) fn get(
        &self,
        cluster: &Cluster,
        count: impl FnOnce() -> Result<u64, StoreError>,
    ) -> Result<u64, StoreError> {
        let sums = cluster.nodes.iter().map(|node| &node.overall);
        let of: Vec<_> = sums.map(|sums| (sums.users, sums.events)).collect();
        let began = Instant::now();
        if let Some(last) = &mut *self.lock() {
            if last.of == of || began < last.reuse_until {
                return Ok(last.users);
            }
            // Long enough for this thread to count.
            last.reuse_until = began + Duration::from_mins(1);
        }
        let counted = count();
        let took = began.elapsed();
        let mut last = self.lock();
        match &counted {
            Ok(users) => {
                *last = Some(Counted {
                    users: *users,
                    of,
                    reuse_until: began + took * (REUSE_FACTOR + 1),
                });
            }
            // The next request tries again.
            Err(_) => *last = None,
        }
        counted
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Member, Overall};

    fn cluster(events: u64) -> Cluster {
        let overall = Overall {
            users: 1,
            events,
            ..Overall::default()
        };
        Cluster {
            nodes: vec![Member {
                overall,
                ..Member::default()
            }],
        }
    }

    fn failed() -> StoreError {
        StoreError::Postgres {
            database: String::new(),
            doing: "count all users",
            cause: String::new(),
            code: None,
            cure: None,
        }
    }

    #[test]
    fn users_are_counted_again_when_something_was_applied_and_not_too_often() {
        // Fails if each request counts all users, or if a count is kept for ever.
        let count = UserCount::default();
        assert!(count.get(&cluster(1), || Err(failed())).is_err());
        assert_eq!(count.get(&cluster(1), || Ok(7)).ok(), Some(7));
        let unwanted = || -> Result<u64, StoreError> { unreachable!("counted again") };
        assert_eq!(count.get(&cluster(1), unwanted).ok(), Some(7));
        let expire = |at: Instant| {
            if let Some(last) = &mut *count.lock() {
                last.reuse_until = at;
            }
        };
        expire(Instant::now() + Duration::from_mins(1));
        assert_eq!(count.get(&cluster(2), unwanted).ok(), Some(7));
        expire(Instant::now());
        assert_eq!(count.get(&cluster(1), unwanted).ok(), Some(7));
        assert_eq!(count.get(&cluster(2), || Ok(8)).ok(), Some(8));
        // While one thread counts, another one gets the last count.
        expire(Instant::now());
        let nested = count.get(&cluster(3), || {
            assert_eq!(count.get(&cluster(4), unwanted).ok(), Some(8));
            Ok(9)
        });
        assert_eq!(nested.ok(), Some(9));
    }
}
