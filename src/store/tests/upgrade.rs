//! A database of an earlier version, upgraded when a writer opens it.

use rusqlite::Connection;
use tempfile::TempDir;

use super::{Existing, Kind, Lines, StoreError, Writer, dump, open};
use crate::data_dir::segment::SegmentId;
use crate::store::apply::RangeEnd;
use crate::store::open::DATABASE_FILE;
use crate::store::recovery::read_segments;
use crate::store::snapshot::Snapshot;

const LABEL: &str = "000042-5e3fa1c29b77d0e4";
const TABLES: &str = "SELECT m.name, c.name, c.type, c.\"notnull\", c.dflt_value, c.pk
    FROM sqlite_schema AS m, pragma_table_xinfo(m.name) AS c
    WHERE m.type = 'table' ORDER BY m.name, c.cid";
const INDEXES: &str = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name";

/// A database of version 4 with three ids, two of them in a block, and imported files of these names.
fn version_4(names: &[String]) -> TempDir {
    let (dir, mut writer) = open();
    let ids = ["a", "run-000001", "run-000002"];
    let lines = ids.map(|id| Lines::event("u", Kind::Add, 1, Some(id)));
    let lines = Lines(lines.to_vec());
    lines.apply(&mut writer, "s", 0, 3);
    for name in names {
        let id = SegmentId::Imported(name.clone());
        let line = Lines(vec![Lines::event("u", Kind::Add, 1, None)]);
        line.apply_as(&mut writer, &id, 0, 1, RangeEnd::Complete);
    }
    writer.close().expect("it closes");
    let connection = Connection::open(dir.path().join(DATABASE_FILE)).expect("it opens");
    connection
        .execute_batch(
            "DROP INDEX segment_label; ALTER TABLE segment DROP COLUMN label;
             ALTER TABLE overall DROP COLUMN ids; PRAGMA user_version = 4",
        )
        .expect("the columns of later versions are gone");
    dir
}

#[test]
fn an_upgraded_database_is_as_a_new_one() {
    // Fails if a column, an index or a check differs, if the ids are not counted, or if the labels in names
    // are not stored.
    let part = format!("events_segment-{LABEL}_from-1834-9ae0daaf_to-2310-1c291ca3.jsonl");
    let sealed = format!("events-2026-11-22T06-41-00.123Z-{LABEL}");
    let labelled = [
        part,
        format!("{sealed}.jsonl"),
        format!("{sealed}-2310-1c291ca3.jsonl"),
    ];
    let others = [
        "events_a.jsonl",
        "events-2026.jsonl",
        "events_segment-1_from-2_to-3.jsonl",
    ];
    let names = [&labelled[..], &others.map(str::to_owned)].concat();
    let dir = version_4(&names);
    let writer = Writer::open(&dir.path().join(DATABASE_FILE), Existing::Only).expect("it opens");
    let label = LABEL.parse().expect("a label");
    let mut found: Vec<String> = writer
        .imports_of(label)
        .expect("rows")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    found.sort_unstable();
    let mut expected = labelled.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    writer.close().expect("it closes");
    let (new, _writer) = open();
    for sql in [TABLES, INDEXES, "PRAGMA user_version"] {
        assert_eq!(dump(&dir, sql), dump(&new, sql));
    }
    assert_eq!(dump(&dir, "SELECT ids FROM overall"), ["3"]);
    assert_eq!(
        dump(&dir, "SELECT count(*) FROM segment WHERE label IS NOT NULL"),
        ["3"]
    );
    let negative = Connection::open(dir.path().join(DATABASE_FILE))
        .and_then(|connection| connection.execute("UPDATE overall SET ids = -1", []));
    assert!(negative.is_err(), "the check is there");
}

#[test]
fn before_the_upgrade_segments_can_be_read_and_verify_says_what_to_do() {
    // Fails if recovery, which reads the rows first, refuses the database, or if verify reports an SQL error.
    let dir = version_4(&[]);
    let path = dir.path().join(DATABASE_FILE);
    assert_eq!(read_segments(&path).expect("rows").len(), 1);
    let error = Snapshot::open(&path).err().expect("refused");
    assert!(matches!(error, StoreError::Older { found: 4, .. }));
    let message = error.to_string();
    assert!(message.contains("run `tallyline process`"), "{message}");
}

#[test]
fn a_database_that_is_too_old_is_refused_and_unchanged() {
    let dir = version_4(&[]);
    let path = dir.path().join(DATABASE_FILE);
    let connection = Connection::open(&path).expect("it opens");
    connection
        .pragma_update(None, "user_version", 3)
        .expect("a version");
    drop(connection);
    let error = Writer::open(&path, Existing::OrCreate).err();
    let message = error.expect("refused").to_string();
    assert!(
        message.contains("version 3") && message.contains("Move it away"),
        "{message}"
    );
    assert_eq!(dump(&dir, "PRAGMA user_version"), ["3"]);
}
