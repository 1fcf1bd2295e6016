//! The C library's allocator, set up to give back what is free.
//!
//! The HTTP library has a thread a connection, and glibc keeps freed memory for each thread (the
//! `tcache`): 28 MiB after one minute of stalled bodies and 54 after ten; without, 25 and 29. Of its
//! arenas, eight for each processor, it keeps what is free at their ends: 128 KiB each, but the
//! largest piece that was ever freed moves that bound, unless it is set. Sixteen uploads of 7 MiB at a
//! time left the process with 122 MiB; set, with 27. Neither costs speed that can be measured. Fewer
//! arenas would take less still, but their locks are what a flood fights for: it then took three
//! times as long until the server answered again. glibc is told by the environment only, before the
//! process begins (its manual, "Memory Allocation Tunables"), so the server begins once more.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const VARIABLE: &str = "GLIBC_TUNABLES";
const SETTINGS: [(&str, &str); 3] = [
    // Pieces of each size that a thread keeps.
    ("glibc.malloc.tcache_count", "0"),
    // Bytes from which on a piece is mapped on its own, and unmapped when it is freed.
    ("glibc.malloc.mmap_threshold", "1048576"),
    // Free bytes at the end of an arena that are kept.
    ("glibc.malloc.trim_threshold", "1048576"),
];
/// Says that this is the second beginning. What was set does not: where the program has privileges
/// of its own (`setcap`), glibc takes it out of the environment.
const ONCE: &str = "_TALLYLINE_ALLOCATOR_SET_UP";

/// Begins this process anew with those set: the same program and arguments, the same process with all
/// it has open. Returns if it is set already, or if it cannot.
///
/// To be called before there are threads, or anything is done that must not be done twice.
pub fn set_up() {
    if cfg!(not(target_env = "gnu")) || std::env::var_os(ONCE).is_some() {
        return;
    }
    let set = std::env::var_os(VARIABLE);
    let Some(value) = tunables(set.as_deref()) else {
        return;
    };
    let mut args = std::env::args_os();
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .arg0(args.next().unwrap_or_default())
            .args(args)
            .env(VARIABLE, value)
            .env(ONCE, "1")
            .exec(),
        Err(error) => error,
    };
    tracing::debug!(%error, "serving with the allocator as it is");
}

/// What was `set`, and after it those of ours that are not named there. `None` if all are, or if it is
/// no text.
fn tunables(set: Option<&OsStr>) -> Option<String> {
    let set = set.unwrap_or_default().to_str()?;
    let ours = SETTINGS
        .iter()
        .filter(|(name, _)| !set.contains(name))
        .map(|(name, value)| format!("{name}={value}"));
    let theirs = (!set.is_empty()).then(|| set.to_owned());
    let all: Vec<_> = theirs.into_iter().chain(ours).collect();
    let all = all.join(":");
    (all != set).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_set_stays() {
        let tunables = |set: &str| tunables(Some(OsStr::new(set)));
        let thresholds = "glibc.malloc.mmap_threshold=1048576:glibc.malloc.trim_threshold=1048576";
        let ours = format!("glibc.malloc.tcache_count=0:{thresholds}");
        assert_eq!(super::tunables(None).as_ref(), Some(&ours));
        assert_eq!(tunables("").as_ref(), Some(&ours));
        assert_eq!(tunables(&ours), None, "once");
        let theirs = "glibc.malloc.tcache_count=3:glibc.malloc.arena_max=7";
        assert_eq!(tunables(theirs), Some(format!("{theirs}:{thresholds}")));
    }
}
