//! The C library's allocator, set up for hundreds of threads.
//!
//! The HTTP library has a thread a connection, and glibc keeps freed memory for each thread (the
//! `tcache`). A server under attack held several times what it had in use, and more by the minute: 28
//! MiB after one minute of stalled bodies and 54 after ten; without, 25 and 29, and no slower. Fewer
//! arenas would take less still, but their locks are what a flood fights for: it then took three
//! times as long until the server answered again. glibc is told by the environment only, before the
//! process begins (its manual, "Memory Allocation Tunables"), so the server begins once more.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const VARIABLE: &str = "GLIBC_TUNABLES";
/// Pieces of each size that a thread keeps; seven if nobody says otherwise.
const CACHED: &str = "glibc.malloc.tcache_count";
/// Says that this is the second beginning. What was set does not: where the program has privileges
/// of its own (`setcap`), glibc takes it out of the environment.
const ONCE: &str = "_TALLYLINE_ALLOCATOR_SET_UP";

/// Begins this process anew with that set: the same program and arguments, the same process with all
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

/// What was `set`, and after it ours. `None` if that is named there already, or if it is no text.
fn tunables(set: Option<&OsStr>) -> Option<String> {
    let set = set.unwrap_or_default().to_str()?;
    let colon = if set.is_empty() { "" } else { ":" };
    (!set.contains(CACHED)).then(|| format!("{set}{colon}{CACHED}=0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_set_stays() {
        let ours = "glibc.malloc.tcache_count=0";
        assert_eq!(tunables(None).as_deref(), Some(ours));
        assert_eq!(tunables(Some(OsStr::new(""))).as_deref(), Some(ours));
        assert_eq!(tunables(Some(OsStr::new(ours))), None, "once");
        let theirs = OsStr::new("glibc.malloc.arena_max=7");
        let both = "glibc.malloc.arena_max=7:glibc.malloc.tcache_count=0";
        assert_eq!(tunables(Some(theirs)).as_deref(), Some(both));
    }
}
