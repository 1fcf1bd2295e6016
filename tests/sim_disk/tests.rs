//! Tests of the disk itself: a model test is only as good as its simulated disk.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use tallyline::data_dir::disk::{Disk, write_new};

use super::{Call, EIO, SimDisk};

const DIR: &str = "data";

fn new_disk() -> SimDisk {
    SimDisk::with_dir(Path::new(DIR))
}

fn at(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// The results of `found` over many power cuts.
fn over_cuts<T: Ord>(disk: impl Fn() -> SimDisk, found: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    (0..300)
        .map(|seed| found(&disk().power_cut(seed)))
        .collect()
}

#[test]
fn synced_data_is_kept_and_unsynced_data_is_arbitrary() {
    // Fails if the simulated disk loses less than a real one can (no test on it would prove
    // anything), or more.
    let disk = || {
        let disk = new_disk();
        let file = disk.create_new(&at("a")).unwrap();
        file.write_all_at(&[b'1'; 600], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
        file.write_all_at(&[b'2'; 900], 600).unwrap();
        disk
    };
    let found = over_cuts(disk, |disk| {
        disk.content(&at("a")).expect("its name was synced")
    });
    assert!(found.iter().all(|bytes| bytes[..600] == [b'1'; 600]));
    let kinds: BTreeSet<_> = found
        .iter()
        .map(|bytes| {
            (
                bytes.len(),
                bytes.get(600).copied(),
                bytes.get(1200).copied(),
            )
        })
        .collect();
    let [kept, lost] = [Some(b'2'), Some(0)];
    let expected = [
        (600, None, None),
        (1500, lost, lost),
        (1500, lost, kept),
        (1500, kept, lost),
        (1500, kept, kept),
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
}

#[test]
fn name_changes_survive_as_a_prefix_and_renames_are_atomic() {
    // Fails if a later creation can survive while an earlier one does not, or a renamed file can be
    // in no directory.
    let disk = || {
        let disk = new_disk();
        disk.create_dir(&at("applied")).unwrap();
        disk.create_new(&at("a")).unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
        disk.create_new(&at("b")).unwrap();
        disk.rename_new(&at("a"), &at("applied/a")).unwrap();
        disk.create_new(&at("c")).unwrap();
        disk
    };
    let names = |disk: &SimDisk| {
        let files = disk.files();
        ["a", "applied/a", "b", "c"].map(|name| files.contains(&at(name)))
    };
    let expected = [
        [true, false, false, false],
        [true, false, true, false],
        [false, true, true, false],
        [false, true, true, true],
    ];
    assert_eq!(over_cuts(disk, names), BTreeSet::from(expected));
    let synced = || {
        let disk = disk();
        disk.sync_dir(&at("applied")).unwrap();
        disk
    };
    assert_eq!(
        over_cuts(synced, names),
        BTreeSet::from([expected[2], expected[3]])
    );
}

#[test]
fn a_failed_sync_loses_its_bytes_permanently() {
    // Fails if a second sync makes the bytes durable. The simulated disk must reproduce that it
    // does not.
    let disk = new_disk();
    let file = disk.create_new(&at("a")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.fail(Call::SyncData, 0, EIO);
    file.write_all_at(b"lost", 0).unwrap();
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(disk.content(&at("a")).unwrap(), b"lost", "still shown");
    file.write_all_at(b"kept", 4).unwrap();
    file.sync_data().unwrap();
    let found = disk.power_cut(1).content(&at("a")).unwrap();
    assert_eq!(found, b"\0\0\0\0kept");
    // Truncated and written again, the range is durable.
    let disk = new_disk();
    let file = disk.create_new(&at("a")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.fail(Call::SyncData, 0, EIO);
    file.write_all_at(b"lost", 0).unwrap();
    assert!(file.sync_data().is_err());
    file.set_len(0).unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.power_cut(1).content(&at("a")).unwrap(), b"kept");
}

#[test]
fn a_full_disk_writes_a_part_and_a_kill_keeps_the_page_cache() {
    // Fails if ENOSPC leaves no half-written bytes, or if a kill has the effect of a power cut.
    let disk = new_disk();
    disk.set_capacity(Some(6));
    let file = disk.create_new(&at("a")).unwrap();
    file.write_all_at(b"1234", 0).unwrap();
    assert_eq!(disk.free_bytes(Path::new(DIR)).unwrap(), 2);
    let full = file.write_all_at(b"5678", 4).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let next = disk.kill();
    assert_eq!(next.content(&at("a")).unwrap(), b"123456");
    assert!(file.size().is_err() && disk.list(Path::new(DIR)).is_err());
    assert!(over_cuts(|| next.kill(), SimDisk::files).contains(&Vec::new()));
}

#[test]
fn write_new_is_atomic_at_any_power_cut() {
    // Fails if `write_new` leaves out a sync: before the rename, or of the directory after it.
    let content = vec![b'x'; 2000];
    let put = |disk: &SimDisk| {
        write_new(disk, &at("note"), |file| {
            file.write_all_at(&content[..700], 0)?;
            file.write_all_at(&content[700..], 700)
        })
    };
    let whole = new_disk();
    put(&whole).unwrap();
    let steps = whole.steps();
    assert_eq!(steps, 8, "{:?}", whole.log());
    for off in 0..=steps {
        for seed in 0..200 {
            let disk = new_disk();
            disk.power_off_at(off);
            let done = put(&disk).is_ok();
            assert_eq!(done, off == steps);
            let found = disk.power_cut(seed);
            match found.content(&at("note")) {
                Some(bytes) => assert!(bytes == content, "step {off}, seed {seed}"),
                None => assert!(!done, "acknowledged, but lost: seed {seed}"),
            }
            // The same after the crash.
            if found.content(&at("note")).is_none() {
                put(&found).unwrap();
            }
            assert_eq!(found.power_cut(seed).content(&at("note")).unwrap(), content);
        }
    }
}
