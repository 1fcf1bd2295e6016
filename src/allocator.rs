//! The C library's allocator, set up for hundreds of threads.
//!
//! The HTTP library has a thread a connection, and glibc keeps freed memory for each thread (the
//! `tcache`) and in eight arenas a processor. A server under attack held several times what it had
//! in use, and more by the minute: 28 MiB after one minute of stalled bodies and 54 after ten. Less
//! of both costs no speed here. glibc takes such settings from the environment only, before the
//! process begins (its manual, "Memory Allocation Tunables"), so the server begins once more.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const VARIABLE: &str = "GLIBC_TUNABLES";
/// Says that this is the second beginning. What was set does not: where the program has privileges
/// of its own (`setcap`), glibc takes it out of the environment.
const ONCE: &str = "_TALLYLINE_ALLOCATOR_SET_UP";

/// Begins this process anew with what is not set yet: the same program and arguments, the same
/// process with all it has open. Returns if there is nothing to set, or if it cannot.
///
/// To be called before there are threads, or anything is done that must not be done twice.
pub fn set_up() {
    if cfg!(not(target_env = "gnu")) || std::env::var_os(ONCE).is_some() {
        return;
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let set = std::env::var_os(VARIABLE);
    let Some(value) = tunables(set.as_deref(), processors) else {
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

/// What was `set`, and after it what is not named there. `None` if all is, or if it is no text.
fn tunables(set: Option<&OsStr>, processors: usize) -> Option<String> {
    let set = set.unwrap_or_default().to_str()?;
    let mut value = set.to_owned();
    for (name, ours) in [
        ("glibc.malloc.tcache_count", 0),
        // As many as can be in use at once.
        ("glibc.malloc.arena_max", processors),
    ] {
        if !set.contains(name) {
            let colon = if value.is_empty() { "" } else { ":" };
            value = format!("{value}{colon}{name}={ours}");
        }
    }
    (value != set).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_set_stays() {
        let ours = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=2";
        assert_eq!(tunables(None, 2).as_deref(), Some(ours));
        assert_eq!(tunables(Some(OsStr::new("")), 2).as_deref(), Some(ours));
        assert_eq!(tunables(Some(OsStr::new(ours)), 9), None, "once");
        let theirs = OsStr::new("glibc.malloc.arena_max=7:glibc.malloc.check=3");
        let both = "glibc.malloc.arena_max=7:glibc.malloc.check=3:glibc.malloc.tcache_count=0";
        assert_eq!(tunables(Some(theirs), 2).as_deref(), Some(both));
    }
}
