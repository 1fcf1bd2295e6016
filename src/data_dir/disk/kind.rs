//! Which file systems SQLite's WAL is not safe on, by the type that statfs reports.
//!
//! The WAL needs memory shared between processes and locks that work; across machines, or through a
//! server in between, one or the other does not hold.

use std::io;
use std::path::Path;

/// The types, as `<linux/magic.h>` and the file systems' own sources number them.
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

/// The name of the file system of `dir` if SQLite's WAL is not safe there.
pub fn unsafe_for_wal(dir: &Path) -> io::Result<Option<&'static str>> {
    Ok(name(rustix::fs::statfs(dir)?.f_type.into()))
}

/// The field is of another width and sign on other machines; the types have 32 bits.
fn name(f_type: i128) -> Option<&'static str> {
    let of_32_bits = f_type & i128::from(u32::MAX);
    let known = UNSAFE
        .iter()
        .find(|(id, _)| i128::from(*id) == of_32_bits)?;
    Some(known.1)
}

#[cfg(test)]
mod tests {
    use super::*;

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
