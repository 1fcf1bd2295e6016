//! The figures of this process. The only I/O of the metrics: it reads `/proc/self`.

use std::path::Path;

/// Figures of this process from `/proc/self`; `None` if they cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// Number of open file descriptors.
    pub open_fds: Option<u64>,
    /// Threads, those of libraries included.
    pub threads: Option<u64>,
}

impl Process {
    /// Reads `/proc/self`. What cannot be read is `None`.
    pub fn read() -> Self {
        let status = crate::data_dir::disk::read_to_string(Path::new("/proc/self/status"))
            .unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Self {
            resident_bytes: field("VmRSS:").map(|kib| kib * 1024),
            // The descriptor that reads the directory is not counted.
            open_fds: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| (fds.count() as u64).saturating_sub(1)),
            threads: field("Threads:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_read() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 4096));
        assert!(process.open_fds.is_some_and(|fds| fds >= 3));
        assert!(process.threads.is_some_and(|threads| threads >= 1));
    }
}
