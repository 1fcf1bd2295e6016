use super::*;

fn record(lines: u64) -> Record {
    Record {
        run: "r".into(),
        ids: "run".into(),
        input: "events.jsonl".into(),
        device: 1,
        inode: 2,
        lines,
        bytes: lines * 10,
        accepted: lines,
        refused: 0,
        checked_bytes: 7,
        checked_crc32: 8,
        settled: false,
        directory: None,
        to: "http://h".into(),
        complete: false,
        open_bytes: 0,
        in_array: false,
        since: None,
        last: "42-1834".to_owned().try_into().ok(),
    }
}

const TO: &str = "http://h";

fn any(_: &Record) -> bool {
    true
}

#[test]
fn what_was_written_is_read_back_and_removed_is_gone() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let mut state = StateFile::open(&path).expect("open");
    assert_eq!(state.take(None, TO, any), None);
    state.write(&record(1)).expect("write");
    state.write(&record(2)).expect("write");
    drop(state);
    let mut state = StateFile::open(&path).expect("open");
    assert_eq!(state.take(None, TO, any), Some(record(2)));
    state.remove().expect("remove");
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
}

#[test]
fn each_data_directory_has_its_own_run() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let [one, two] = [1, 2].map(|number| Some(Uuid::from_u128(number)));
    let of = |directory, lines| Record {
        directory,
        ..record(lines)
    };
    for (directory, lines) in [(one, 1), (two, 2), (one, 3)] {
        let mut state = StateFile::open(&path).expect("open");
        state.take(directory, TO, any);
        state.write(&of(directory, lines)).expect("write");
    }
    let mut state = StateFile::open(&path).expect("open");
    assert_eq!(state.take(one, "http://other", any), Some(of(one, 3)));
    state.remove().expect("remove");
    let mut state = StateFile::open(&path).expect("open");
    assert_eq!(state.take(one, "http://other", any), None);
    assert_eq!(state.take(two, "http://other", any), Some(of(two, 2)));
}

#[test]
fn a_state_of_format_1_is_read() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let old = r#"{"version":1,"run":"20261122T064100Z-0badcafe","ids":"run","input":"/e.jsonl","device":1,"inode":2,"lines":3,"bytes":30,"accepted":2,"refused":1,"checkedBytes":90,"checkedCrc32":7,"settled":true}"#;
    std::fs::write(&path, old).expect("write");
    let mut state = StateFile::open(&path).expect("open");
    let read = state
        .take(Some(Uuid::from_u128(1)), TO, any)
        .expect("a run");
    assert_eq!((read.lines, read.complete), (3, false));
    assert_eq!(read.run, "20261122T064100Z-0badcafe");
}

#[test]
fn nothing_written_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    drop(StateFile::open(&path).expect("open"));
    assert!(!path.exists());
}

#[test]
fn a_second_sender_is_refused_also_after_a_write() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    let mut state = StateFile::open(&path).expect("open");
    assert!(matches!(
        StateFile::open(&path),
        Err(SendError::StateBusy { .. })
    ));
    state.write(&record(1)).expect("write");
    assert!(matches!(
        StateFile::open(&path),
        Err(SendError::StateBusy { .. })
    ));
}

#[test]
fn a_file_of_another_program_is_not_changed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("s");
    std::fs::write(&path, "not ours").expect("write");
    assert!(matches!(
        StateFile::open(&path),
        Err(SendError::StateUnreadable { .. })
    ));
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "not ours");
}
