//! Work on several threads, one of which is the calling one.
//!
//! The threads are started for the work and end with it: they can borrow, and an idle processor has none.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, Builder};

/// Calls `work` for each of `parts` parts, at least one: for the first one on this thread, for the others on the
/// threads `process-scan-N`, or afterwards on this one if a thread cannot be started. A panic is an error.
pub(super) fn in_parallel<T: Send>(
    parts: usize,
    work: impl Fn(usize) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let work = &|part| contained(|| work(part));
    thread::scope(|scope| {
        let start = |part| {
            let builder = Builder::new().name(format!("process-scan-{}", part - 1));
            (part, builder.spawn_scoped(scope, move || work(part)))
        };
        let others: Vec<_> = (1..parts).map(start).collect();
        let first = work(0);
        let others = others.into_iter().map(|(part, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(panicked())),
            Err(_) => work(part),
        });
        std::iter::once(first).chain(others).collect()
    })
}

/// Does a part of the work of a range; a panic is an error of that part.
pub(super) fn contained<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> io::Error {
    io::Error::other("a scanning thread panicked; please report this")
}
