//! Whatever was applied, however it was cut: a recount agrees, and no change of the database or of a
//! file escapes it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::data_dir::disk::RealDisk;
use crate::data_dir::testing::{tag_of, write_active, write_sealed};
use crate::processor::{ProcessConfig, run_once};
use crate::store::{DATABASE_FILE, Existing, IdsWalk, Writer};

fn apply(dir: &TempDir) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut config = ProcessConfig::new(dir.path());
    config.memory_bytes = 4096; // several ranges a file
    run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
}

fn check(dir: &TempDir) -> (VerifyReport, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut config = Target::new(dir.path());
    config.memory_bytes = 4096;
    let verdict = verify(
        &config,
        &RealDisk,
        &mut |finding| findings.push(finding.clone()),
        &mut |done, total| assert!(done <= total, "{done} of {total}"),
    );
    (verdict.expect("it runs").expect("a database"), findings)
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
    // Amounts so large that ten of one user overflow; ids so few that they come again.
    prop_oneof![
        4 => ("[a-d]", 0u64..1000).prop_map(|(user, amount)| line(&user, amount, None)),
        2 => ("[a-d]", 1u64..3, 0u8..20).prop_map(|(user, amount, id)| line(&user, amount, Some(id))),
        2 => "[xy]".prop_map(|user| line(&user, 1_000_000_000_000, None)),
        1 => ("[xy]", 0u8..20).prop_map(|(user, id)| line(&user, 1_000_000_000_000, Some(id))),
        1 => Just("nonsense\n".to_owned()),
        1 => Just("\n".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_recount_agrees_until_something_is_changed(
        files in prop::collection::vec(prop::collection::vec(any_line(), 1..60), 1..4),
        column in 0usize..9,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        for (index, lines) in files.iter().enumerate() {
            write(&dir, index + 1, &lines.concat());
        }
        apply(&dir);
        let (verdict, findings) = check(&dir);
        prop_assert!(verdict.agrees(), "{findings:?}");
        prop_assert!(verdict.users.is_some());
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
            let (verdict, findings) = check(&dir);
            prop_assert!(!verdict.agrees(), "{}: {findings:?}", sql[column]);
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
    let (verdict, findings) = check(&dir);
    assert_eq!(verdict.differences, 2, "the sums agree: {findings:?}");
    let words = format!("{findings:?}");
    assert!(
        words.contains("\\\"a\\\"") && words.contains("\\\"b\\\""),
        "{words}"
    );
}

#[test]
fn a_wrong_sum_of_whole_segments_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    write(&dir, 1, &line("a", 1, None));
    apply(&dir);
    assert!(check(&dir).0.agrees());
    change(&dir, "UPDATE applied_sum SET segments = 2");
    let (verdict, findings) = check(&dir);
    assert_eq!(verdict.differences, 1, "{findings:?}");
    let words = format!("{findings:?}");
    assert!(words.contains("applied_sum holds 2 segments"), "{words}");
    let words = sums::difference(&dir.path().join(DATABASE_FILE))
        .expect("a read")
        .expect("words");
    assert!(words.contains("applied_sum holds 2 segments"), "{words}");
}

#[test]
fn a_file_is_found_wherever_it_lies_and_named_when_it_does_not() {
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
        "set aside, but it proves what it proves"
    );
    fs::remove_file(archived(2)).expect("removed");
    let (verdict, findings) = check(&dir);
    assert_eq!(
        (verdict.inconclusive, verdict.differences),
        (1, 0),
        "{findings:?}"
    );
    assert_eq!(verdict.users, None);
    fs::write(archived(3), line("a", 2, None)).expect("changed");
    assert_eq!(check(&dir).0.differences, 1);
    // Nothing but the database file is left of all that reading.
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
fn what_is_not_applied_is_pending_and_no_difference() {
    let dir = tempfile::tempdir().expect("a directory");
    write(&dir, 1, &line("a", 1, None));
    apply(&dir);
    write(&dir, 2, &line("a", 1, None));
    write_active(dir.path(), 3, &line("a", 1, None));
    let (verdict, findings) = check(&dir);
    assert!(verdict.agrees());
    let bytes = 2 * (line("a", 1, None).len() + Label::BYTES);
    let pending = format!("pending: {bytes} bytes in 2 files are not applied yet");
    assert_eq!(findings, [Finding::Note(pending)]);
    write(&dir, 5, &line("a", 1, None));
    assert_eq!(check(&dir).0.inconclusive, 1, "number 4 is missing");
}

#[test]
fn ids_let_go_are_said_and_what_is_certain_is_still_compared() {
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
    let (verdict, findings) = check(&dir);
    assert!(verdict.agrees(), "{findings:?}");
    assert_eq!(
        verdict.users,
        Some(2),
        "each of the three can only have counted"
    );
    assert!(
        format!("{findings:?}").contains("3 ids were let go"),
        "{findings:?}"
    );
    // Let go and sent again, two of them twice: which one counted is not certain any more.
    write(&dir, 2, &format!("{}{}", ids(0), ids(0)));
    apply(&dir);
    let (verdict, findings) = check(&dir);
    assert!(verdict.agrees(), "{findings:?}");
    change(
        &dir,
        "UPDATE segment SET ids_expired = ids_expired - 1 WHERE key = 1",
    );
    assert!(!check(&dir).0.agrees());
}

#[test]
fn an_id_without_its_line_is_a_difference() {
    // Red if the table of ids is never held against the rows and the files: the next event with such
    // an id is then a duplicate of nothing.
    let insert = |id: &str, segment: i64, offset: i64| {
        format!(
            "INSERT INTO event_id (id, payload, segment, offset, applied_at_s) VALUES ('{id}', 1, {segment}, {offset}, 1)"
        )
    };
    let wrong = [
        ("does not know", insert("strange", -7, 0)),
        ("2 ids of it are kept, but 1", insert("strange", 1, 0)),
        (
            "stand where their rows say",
            "UPDATE event_id SET offset = offset + 1".to_owned(),
        ),
        ("0 ids of it are kept", "DELETE FROM event_id".to_owned()),
    ];
    for (words, sql) in wrong {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("events_a.jsonl"), line("a", 1, None)).expect("written");
        write(
            &dir,
            1,
            &format!("{}{}", line("a", 1, Some(2)), line("b", 1, None)),
        );
        apply(&dir);
        assert!(check(&dir).0.agrees());
        // A key that an imported file had whose row is gone.
        change(&dir, "UPDATE segment SET key = -9 WHERE key < 0");
        assert!(check(&dir).0.agrees(), "a key is only a key");
        assert_eq!(change(&dir, &sql), 1, "{sql}");
        let (verdict, findings) = check(&dir);
        let said = format!("{findings:?}");
        assert!(!verdict.agrees() && said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_block_of_ids_that_is_not_what_the_files_say_is_named() {
    // R12. Red if a block is not read whole, or not held against the rows and the files.
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
        (
            "1 events bear an id that the database does not know",
            |bytes| bytes[1] += 1,
        ),
        ("the file comes to 1 events", |bytes| bytes[2] ^= 1),
        (
            "1 ids are kept of segments that the database does not know",
            |bytes| bytes[6] = 8,
        ),
        ("only 0 of them stand where their rows say", |bytes| {
            bytes[7] ^= 1;
        }),
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
            "4 ids of it are kept, but 2 of its counted events have an id",
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
