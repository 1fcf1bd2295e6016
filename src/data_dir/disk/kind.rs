//! File system types, as reported by statfs: whether SQLite's WAL is safe there, and whether the kernel
//! generates the files' content.
//!
//! The WAL needs shared memory between processes and reliable locks. Network file systems and file
//! systems with a user-space server lack one or the other.

use std::io;
use std::path::Path;

/// Type numbers from `<linux/magic.h>` and from the sources of the file systems.
const UNSAFE: [(u32, &str); 12] = [
    (0x6969, "NFS"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE (virtiofs, GlusterFS, sshfs and others)"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB"),
    (0x517B, "SMB"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x786F_4256, "vboxsf"),
];

/// Local file systems on which `syncfs` makes all files durable, as an fsync of each file does.
const SYNCED_AS_A_WHOLE: [u32; 6] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0xF2F5_2010, // F2FS
    0x794C_7630, // overlayfs
    0x0102_1994, // tmpfs
];

/// `syncfs` reports failed writes since Linux 5.8.
const SYNCFS_REPORTS_SINCE: (u32, u32) = (5, 8);

/// Whether one `syncfs` is as strong as an fdatasync of each file, including the report of errors.
pub(super) fn syncs_as_a_whole(dir: &Path) -> io::Result<bool> {
    let known = is_one_of(&SYNCED_AS_A_WHOLE, rustix::fs::statfs(dir)?.f_type.into());
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    Ok(known && version(&release).is_some_and(|version| version >= SYNCFS_REPORTS_SINCE))
}

/// The first two numbers of a kernel release, such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

fn is_one_of(types: &[u32], f_type: i128) -> bool {
    let of_32_bits = f_type & i128::from(u32::MAX);
    types.iter().any(|id| i128::from(*id) == of_32_bits)
}

/// The name of the file system of `dir` if SQLite's WAL is not safe there; otherwise `None`.
pub fn unsafe_for_wal(dir: &Path) -> io::Result<Option<&'static str>> {
    Ok(name(rustix::fs::statfs(dir)?.f_type.into()))
}

/// File systems whose files the kernel generates as they are read.
const GENERATED: [(u32, &str); 9] = [
    (0x9FA0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x0027_E0EB, "cgroupfs"),
    (0x6367_7270, "cgroupfs"),
    (0x6265_6570, "configfs"),
    (0xF97C_FF8C, "selinuxfs"),
];

/// The name of the file system if the kernel generates its files; otherwise `None`.
pub(super) fn generated(of: &rustix::fs::StatFs) -> Option<&'static str> {
    find(&GENERATED, of.f_type.into())
}

fn name(f_type: i128) -> Option<&'static str> {
    find(&UNSAFE, f_type)
}

/// Compares the low 32 bits only: the width and sign of the field differ between architectures.
fn find(types: &[(u32, &'static str)], f_type: i128) -> Option<&'static str> {
    let of_32_bits = f_type & i128::from(u32::MAX);
    let known = types.iter().find(|(id, _)| i128::from(*id) == of_32_bits)?;
    Some(known.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_file_systems_of_a_kernel_that_reports_errors_are_synced_as_a_whole() {
        assert!(is_one_of(&SYNCED_AS_A_WHOLE, 0xEF53));
        let negative = i128::from(i32::from_ne_bytes(0x9123_683E_u32.to_ne_bytes()));
        assert!(is_one_of(&SYNCED_AS_A_WHOLE, negative), "sign-extended");
        for (id, name) in UNSAFE {
            assert!(!is_one_of(&SYNCED_AS_A_WHOLE, id.into()), "{name}");
        }
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("4.19"), Some((4, 19)));
        assert!(version("5.7.19").is_some_and(|old| old < SYNCFS_REPORTS_SINCE));
        assert!(version("5.10").is_some_and(|new| new >= SYNCFS_REPORTS_SINCE));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn network_file_systems_are_named_and_local_ones_are_not() {
        assert_eq!(name(0x6969), Some("NFS"));
        assert_eq!(name(0x0102_1997), Some("9p"));
        let negative = i128::from(i32::from_ne_bytes(0xFF53_4D42_u32.to_ne_bytes()));
        assert_eq!(name(negative), Some("CIFS"), "sign-extended");
        for local in [0xEF53, 0x0102_1994, 0x5846_5342, 0x9123_683E, 0x794C_7630] {
            assert_eq!(name(local), None, "{local:#x}");
        }
        assert!(unsafe_for_wal(Path::new("/nonexistent")).is_err());
    }
}
