//! The default of `--memory`: a share of the memory that this process may use.

use std::path::Path;

use crate::data_dir::disk;

const MIB: u64 = 1 << 20;
/// An eighth, so that the page cache, which holds the files that are read and the database that is written,
/// has most of the memory, and several servers fit on one machine.
const SHARE: u64 = 8;
/// Less costs a larger machine nothing, and makes more and smaller temporary files.
const LEAST: u64 = 64 * MIB;
/// Enough for six million users without temporary files, which take a quarter of the time with many lines of each.
const MOST: u64 = 1024 * MIB;

/// The default of `--memory` on this machine, in bytes.
pub(super) fn default_bytes() -> u64 {
    let system = rustix::system::sysinfo();
    let total = system.totalram.saturating_mul(u64::from(system.mem_unit));
    let cgroups = disk::read_to_string(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limit = cgroup_limit(Path::new("/sys/fs/cgroup"), &cgroups);
    share_of(limit.map_or(total, |limit| limit.min(total)))
}

/// The default with `available` bytes of memory, in whole MiB.
fn share_of(available: u64) -> u64 {
    (available / SHARE / MIB * MIB).clamp(LEAST, MOST)
}

/// The lowest memory limit of the control groups of this process, which `/proc/self/cgroup` lists; `None` if
/// there is none. A limit of a group applies to the groups in it, too. In a container, the path may be that
/// of the host, while only its own groups are mounted at `root`.
fn cgroup_limit(root: &Path, cgroups: &str) -> Option<u64> {
    let mut lowest = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let group = Path::new(path.trim_start_matches('/'));
        for group in group.ancestors() {
            let limit = disk::read_to_string(&root.join(group).join(file));
            // Without a limit it is `max`, or a number above any memory.
            let limit = limit.ok().and_then(|text| text.trim().parse::<u64>().ok());
            lowest = [lowest, limit].into_iter().flatten().min();
        }
    }
    lowest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_an_eighth_within_bounds() {
        assert_eq!(share_of(0), 64 * MIB);
        assert_eq!(share_of(512 * MIB), 64 * MIB);
        assert_eq!(share_of(2048 * MIB + 5), 256 * MIB);
        assert_eq!(share_of(1 << 40), 1024 * MIB);
        assert!((LEAST..=MOST).contains(&default_bytes()));
    }

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            std::fs::write(path, text).expect("written");
        };
        let limit = |cgroups: &str| cgroup_limit(root.path(), cgroups);
        assert_eq!(limit("0::/a/b\n"), None, "no files");
        put("memory.max", "max\n");
        put("a/memory.max", "1000\n");
        put("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), Some(1000), "of an outer group");
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("0::/../../host\n"), None);
        // Version 1, in a container that sees its own group only.
        put("memory/memory.limit_in_bytes", "700\n");
        let both = "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/abc\n0::/a/b\n";
        assert_eq!(limit(both), Some(700));
        assert_eq!(limit("5:cpu,cpuacct:/x\nodd\n"), None);
    }
}
