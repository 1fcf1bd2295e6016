//! A recount matches after any sequence of applies, and detects every change of the database or of a file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::data_dir::disk::RealDisk;
use crate::data_dir::testing::{tag_of, write_active, write_sealed};
use crate::processor::{ProcessorConfig, run_once};
use crate::store::{DATABASE_FILE, Database, Existing, IdsWalk, Writer};

fn apply(dir: &TempDir) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut config = ProcessorConfig::new(dir.path());
    config.memory_bytes = 4096; // several ranges per file
    run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
}

fn check(dir: &TempDir) -> (VerifyReport, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut config = Target::new(dir.path());
    config.memory_bytes = 4096;
    let report = verify(
        &config,
        &RealDisk,
        &mut |finding| findings.push(finding.clone()),
        &mut |done, total| assert!(done <= total, "{done} of {total}"),
    );
    (report.expect("it runs").expect("a database"), findings)
}

fn change(dir: &TempDir, sql: &str) -> usize {
    let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    connection.execute(sql, []).expect("it changes")
}

fn line(user: &str, amount: u64, id: Option<u8>) -> String {
    // Every other one is kept in a block.
    let id = id.map(|id| match id % 2 {
        0 => format!("{id}"),
        _ => format!("run-{id:06}"),
    });
    let id = id.map_or(String::new(), |id| format!(",\"id\":\"{id}\""));
    format!("{{\"userId\":\"{user}\",\"name\":\"add_revenue\",\"value\":{amount}{id}}}\n")
}

fn write(dir: &TempDir, number: usize, text: &str) {
    write_sealed(dir.path(), number as u64, text);
}

fn any_line() -> impl Strategy<Value = String> {
    // Ten of the largest amounts overflow a total; ids are few, so that they repeat.
    prop_oneof![
        4 => ("[a-d]", 0u64..1000).prop_map(|(user, amount)| line(&user, amount, None)),
        2 => ("[a-d]", 1u64..3, 0u8..20).prop_map(|(user, amount, id)| line(&user, amount, Some(id))),
        2 => "[xy]".prop_map(|user| line(&user, 1_000_000_000_000, None)),
        1 => ("[xy]", 0u8..20).prop_map(|(user, id)| line(&user, 1_000_000_000_000, Some(id))),
        1 => Just("nonsense\n".to_owned()),
        1 => Just("\n".to_owned()),
    ]
}

#[test]
fn users_that_only_the_files_or_only_the_database_has_are_found() {
    // Fails if a user before, between or after those of the other side is not compared.
    let dir = tempfile::tempdir().expect("a directory");
    write(
        &dir,
        1,
        &["b", "d", "f", "h"]
            .map(|user| line(user, 1, None))
            .concat(),
    );
    apply(&dir);
    let renamed = [("b", "c"), ("d", "a"), ("h", "i")];
    for (from, to) in renamed {
        change(
            &dir,
            &format!("UPDATE user_total SET user_id = '{to}' WHERE user_id = '{from}'"),
        );
    }
    let (report, findings) = check(&dir);
    let mut expected = Vec::new();
    for (user, files, database) in [
        ("a", 0, 1),
        ("b", 1, 0),
        ("c", 0, 1),
        ("d", 1, 0),
        ("h", 1, 0),
        ("i", 0, 1),
    ] {
        expected.push(Finding::Mismatch(format!(
            "user {user:?}: the files have {files} from {files} events, the database {database} from {database}"
        )));
    }
    assert_eq!(findings, expected);
    assert_eq!((report.differences, report.users), (6, Some(4)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_recount_matches_until_something_is_changed(
        files in prop::collection::vec(prop::collection::vec(any_line(), 1..60), 1..4),
        column in 0usize..9,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        for (index, lines) in files.iter().enumerate() {
            write(&dir, index + 1, &lines.concat());
        }
        apply(&dir);
        let (report, findings) = check(&dir);
        prop_assert!(report.agrees(), "{findings:?}");
        prop_assert!(report.users.is_some());
        let sql = [
            "UPDATE segment SET events = events + 1, lines = lines + 1",
            "UPDATE segment SET duplicates = duplicates + 1, lines = lines + 1",
            "UPDATE segment SET rejected = rejected + 1, lines = lines + 1",
            "UPDATE segment SET net_check = net_check + 1",
            "UPDATE segment SET checksum = checksum + 1",
            "UPDATE user_total SET revenue_micros = revenue_micros + 1",
            "UPDATE user_total SET events = events + 1",
            "DELETE FROM event_id",
            "DELETE FROM id_block",
        ];
        if change(&dir, sql[column]) > 0 {
            let (report, findings) = check(&dir);
            prop_assert!(!report.agrees(), "{}: {findings:?}", sql[column]);
        }
    }
}

#[test]
fn two_users_changed_against_each_other_are_both_named() {
    let dir = tempfile::tempdir().expect("a directory");
    write(
        &dir,
        1,
        &format!("{}{}", line("a", 1, None), line("b", 2, None)),
    );
    apply(&dir);
    change(
        &dir,
        "UPDATE user_total SET revenue_micros = 3000000 - revenue_micros",
    );
    let (report, findings) = check(&dir);
    assert_eq!(report.differences, 2, "the sums agree: {findings:?}");
    let text = format!("{findings:?}");
    assert!(
        text.contains("\\\"a\\\"") && text.contains("\\\"b\\\""),
        "{text}"
    );
}

#[test]
fn a_wrong_sum_of_applied_segments_is_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    write(&dir, 1, &line("a", 1, None));
    apply(&dir);
    assert!(check(&dir).0.agrees());
    change(&dir, "UPDATE applied_sum SET segments = 2");
    let (report, findings) = check(&dir);
    assert_eq!(report.differences, 1, "{findings:?}");
    let text = format!("{findings:?}");
    assert!(text.contains("applied_sum has 2 segments"), "{text}");
    let text = sums::difference(&Database::in_dir(dir.path()), Uuid::nil())
        .expect("a read")
        .expect("a difference");
    assert!(text.contains("applied_sum has 2 segments"), "{text}");
}

#[test]
fn wrong_sums_over_all_users_are_reported() {
    for (column, shown) in [
        ("users", "9 users"),
        ("events", "9 events"),
        ("revenue_micros", "revenue of 0.000009"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        write(&dir, 1, &line("a", 1, None));
        apply(&dir);
        assert!(check(&dir).0.agrees());
        change(
            &dir,
            &format!("UPDATE overall SET events = 9, {column} = 9"),
        );
        let (report, findings) = check(&dir);
        assert_eq!(report.differences, 1, "{findings:?}");
        let text = format!("{findings:?}");
        assert!(
            text.contains(shown) && text.contains("but the rows of user_total have 1 users"),
            "{text}"
        );
        let text = sums::difference(&Database::in_dir(dir.path()), Uuid::nil())
            .expect("a read")
            .expect("a difference");
        assert!(text.contains(shown), "{text}");
    }
}

#[test]
fn a_file_is_found_in_any_directory_and_reported_if_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    for number in 1..=3 {
        write(&dir, number, &line("a", 1, None));
    }
    apply(&dir);
    let archived = |number: u32| {
        let catalog = Catalog::scan(&RealDisk, dir.path(), tag_of(dir.path())).expect("a listing");
        catalog.sealed[&SegmentId::Native(u64::from(number))][0]
            .path
            .clone()
    };
    fs::create_dir(dir.path().join("quarantine")).expect("a directory");
    let moved = dir
        .path()
        .join("quarantine")
        .join(archived(1).file_name().expect("a name"));
    fs::rename(archived(1), moved).expect("moved");
    assert!(
        check(&dir).0.agrees(),
        "a file in the quarantine is recounted too"
    );
    fs::remove_file(archived(2)).expect("removed");
    let (report, findings) = check(&dir);
    assert_eq!(
        (report.inconclusive, report.differences),
        (1, 0),
        "{findings:?}"
    );
    assert_eq!(report.users, None);
    fs::write(archived(3), line("a", 2, None)).expect("changed");
    assert_eq!(check(&dir).0.differences, 1);
    // Verify removes its temporary files.
    let left = fs::read_dir(dir.path()).expect("a listing");
    let left: Vec<_> = left
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| Path::new(name).to_string_lossy().contains("db-")),
        "{left:?}"
    );
}

#[test]
fn bytes_not_yet_applied_are_pending_and_not_a_difference() {
    let dir = tempfile::tempdir().expect("a directory");
    write(&dir, 1, &line("a", 1, None));
    apply(&dir);
    write(&dir, 2, &line("a", 1, None));
    write_active(dir.path(), 3, &line("a", 1, None));
    let (report, findings) = check(&dir);
    assert!(report.agrees());
    let bytes = 2 * (line("a", 1, None).len() + Label::BYTES);
    let pending = format!("pending: {bytes} bytes in 2 files are not applied yet");
    assert_eq!(findings, [Finding::Note(pending)]);
    write(&dir, 5, &line("a", 1, None));
    assert_eq!(check(&dir).0.inconclusive, 1, "number 4 is missing");
}

#[test]
fn expired_ids_are_reported_and_the_rest_is_still_compared() {
    let dir = tempfile::tempdir().expect("a directory");
    let ids = |from: u8| {
        (from..from + 5)
            .map(|id| line("a", 1, Some(id)))
            .collect::<String>()
    };
    write(&dir, 1, &format!("{}{}", ids(0), line("b", 1, None)));
    apply(&dir);
    let path = dir.path().join(DATABASE_FILE);
    let mut writer = Writer::open(&path, Existing::Only).expect("it opens");
    let any = crate::store::Stamps {
        now_ms: 0,
        earliest_ms: i64::MIN,
        latest_ms: i64::MAX,
    };
    let walk = writer
        .expire_ids(&IdsWalk::default(), i64::MAX, &any, 3)
        .expect("a step");
    assert_eq!((walk.is_at_start(), walk.expired), (false, 3));
    let walk = writer.expire_ids(&walk, 0, &any, 3).expect("a step");
    assert_eq!((walk.is_at_start(), walk.expired), (false, 0), "too young");
    let walk = writer.expire_ids(&walk, 0, &any, 3).expect("a step");
    assert_eq!((walk.is_at_start(), walk.expired), (true, 0), "no blocks");
    writer.close().expect("closed");
    let (report, findings) = check(&dir);
    assert!(report.agrees(), "{findings:?}");
    assert_eq!(
        report.users,
        Some(2),
        "each of the three must have been counted"
    );
    assert!(
        format!("{findings:?}").contains("3 ids have expired"),
        "{findings:?}"
    );
    // Expired and sent again, two of them twice: which line was counted cannot be determined.
    write(&dir, 2, &format!("{}{}", ids(0), ids(0)));
    apply(&dir);
    let (report, findings) = check(&dir);
    assert!(report.agrees(), "{findings:?}");
    change(
        &dir,
        "UPDATE segment SET ids_expired = ids_expired - 1 WHERE key = 1",
    );
    assert!(!check(&dir).0.agrees());
}

#[test]
fn an_id_without_its_line_is_a_difference() {
    // Fails if the table of ids is not compared with the rows and the files: the next event with such an
    // id would be a duplicate although it was never counted.
    let insert = |id: &str, segment: i64, offset: i64| {
        format!(
            "INSERT INTO event_id (id, payload, segment, offset, applied_at_s) VALUES ('{id}', 1, {segment}, {offset}, 1)"
        )
    };
    let wrong = [
        ("are not in the database", insert("strange", -7, 0)),
        (
            "the database has 2 ids of it, but 1",
            insert("strange", 1, 0),
        ),
        (
            "are at the offset in their row",
            "UPDATE event_id SET offset = offset + 1".to_owned(),
        ),
        (
            "the database has 0 ids of it",
            "DELETE FROM event_id".to_owned(),
        ),
    ];
    for (expected, sql) in wrong {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("events_a.jsonl"), line("a", 1, None)).expect("written");
        write(
            &dir,
            1,
            &format!("{}{}", line("a", 1, Some(2)), line("b", 1, None)),
        );
        apply(&dir);
        assert!(check(&dir).0.agrees());
        // The key of an imported file whose row was deleted.
        change(&dir, "UPDATE segment SET key = -9 WHERE key < 0");
        assert!(check(&dir).0.agrees(), "keys have no meaning of their own");
        assert_eq!(change(&dir, &sql), 1, "{sql}");
        let (report, findings) = check(&dir);
        let text = format!("{findings:?}");
        assert!(
            !report.agrees() && text.contains(expected),
            "{expected}: {text}"
        );
    }
}

#[test]
fn a_block_of_ids_that_is_not_what_the_files_say_is_named() {
    // Fails if a part of a block is not compared with the rows and the files (rule R12).
    type Change = fn(&mut Vec<u8>);
    // One number: form, number, hash (4 bytes), segment, offset (2 bytes).
    let changes: [(&str, Change); 8] = [
        (
            "block 0 of the ids \\\"run-\\\" with 6 digits: the bytes",
            |bytes| {
                bytes.pop();
            },
        ),
        ("the bytes of the block end too early", |bytes| {
            bytes.push(0);
        }),
        ("goes past number 127", |bytes| bytes[1] = 200),
        ("the bytes of the block end", |bytes| bytes[0] |= 2),
        ("1 events have an id that is not in the database", |bytes| {
            bytes[1] += 1;
        }),
        ("the file has 1 events", |bytes| bytes[2] ^= 1),
        (
            "1 ids belong to segments that are not in the database",
            |bytes| bytes[6] = 8,
        ),
        (
            "but only 0 of them are at the offset in their row",
            |bytes| {
                bytes[7] ^= 1;
            },
        ),
    ];
    for (words, change) in changes {
        let dir = tempfile::tempdir().expect("a directory");
        let lines = [line("long name of a user", 1, None), line("a", 1, Some(1))];
        write(&dir, 1, &lines.concat());
        apply(&dir);
        assert!(check(&dir).0.agrees());
        let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
        let mut bytes: Vec<u8> = connection
            .query_row("SELECT numbers FROM id_block", [], |row| row.get(0))
            .expect("a block");
        assert_eq!(bytes.len(), 9);
        change(&mut bytes);
        connection
            .execute("UPDATE id_block SET numbers = ?1", [bytes])
            .expect("it changes");
        drop(connection);
        let (verdict, findings) = check(&dir);
        let said = format!("{findings:?}");
        assert!(!verdict.agrees() && said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_run_past_what_is_applied_and_a_block_too_many_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    write(
        &dir,
        1,
        &[line("a", 1, Some(1)), line("a", 1, Some(3))].concat(),
    );
    apply(&dir);
    assert!(check(&dir).0.agrees());
    for (sql, undo, words) in [
        (
            "UPDATE segment SET applied_bytes = 20",
            "UPDATE segment SET applied_bytes = applied_bytes",
            "past what is applied",
        ),
        (
            "INSERT INTO id_block SELECT 'other-', width, block, numbers, 1 FROM id_block",
            "DELETE FROM id_block WHERE prefix = 'other-'",
            "the database has 4 ids of it, but 2 of its counted events have an id",
        ),
    ]
    .into_iter()
    .rev()
    {
        change(&dir, sql);
        let (verdict, findings) = check(&dir);
        let said = format!("{findings:?}");
        assert!(!verdict.agrees() && said.contains(words), "{words}: {said}");
        change(&dir, undo);
    }
}
