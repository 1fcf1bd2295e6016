use super::*;
use crate::backup::{create, refuse_unfinished};
use crate::cli::config::ServeConfig;
use crate::processor::{ProcessorConfig, run_once};
use crate::server::Server;
use crate::shutdown::Shutdown;
use crate::store::read_checks;
use crate::verify::{Target, verify};

/// Ingests events of 1 each, in batches that are sealed. `copy` gets the files before the server
/// is stopped, with the last two events in the active file.
fn serve(data: &Path, batches: usize, copy: Option<&Path>) {
    let server = Server::start(&ServeConfig::at(data)).expect("it starts");
    let url = format!("http://{}", server.address());
    let http: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
    let post = |path: &str, body: &str| {
        let posted = http.post(format!("{url}{path}")).send(body);
        posted.expect("an answer");
    };
    let event = r#"{"userId": "u", "name": "add_revenue", "value": 1}"#;
    for _ in 0..batches {
        post("/liveEvent", event);
        post("/flush", "");
    }
    if let Some(copy) = copy {
        post("/liveEvent", event);
        post("/liveEvent", event);
        copy_tree(data, copy);
    }
    server.stop().expect("it stops");
}

/// Copies all files but the database and the locks.
fn copy_tree(from: &Path, to: &Path) {
    for path in manifest::files_below(from).expect("listed") {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(DATABASE_FILE) || name.contains(".lock") {
            continue;
        }
        let target = to.join(path.strip_prefix(from).expect("below"));
        fs::create_dir_all(parent(&target)).expect("created");
        fs::copy(&path, target).expect("copied");
    }
}

fn steps(backup: &Path, data: &Path, count: usize) {
    fs::create_dir_all(data).expect("created");
    let manifest = Manifest::read(backup).expect("a backup");
    let restore = Restore::prepare(backup, manifest, data, &mut |_, _| {}).expect("not refused");
    let mut restored = Restored::default();
    for step in &STEPS[..count] {
        step(&restore, &mut restored, &mut |_, _| {}).expect("it works");
    }
}

#[test]
fn an_interrupted_restore_is_not_mixed_with_another_backup() {
    // Fails if files of the first backup, which were added before the interruption, are counted as
    // imported files after the restore of the second one.
    let scratch = tempfile::tempdir().expect("a directory");
    let at = |name: &str| scratch.path().join(name);
    let backup_of = |name: &str| at(&format!("backup of {name}"));
    for name in ["first", "second", "target"] {
        serve(&at(name), 2, None);
        let (from, to) = (at(name), backup_of(name));
        create::create(&from, &to, &Shutdown::default(), &mut |_, _| {}).expect("a backup");
    }
    let data = at("target");
    let prepare = |name: &str| {
        let manifest = Manifest::read(&backup_of(name)).expect("a backup");
        Restore::prepare(&backup_of(name), manifest, &data, &mut |_, _| {}).map(drop)
    };
    prepare("second").expect("not refused before");
    steps(&backup_of("first"), &data, STEPS.len() - 1);
    let error = prepare("second").expect_err("refused").to_string();
    assert!(
        error.contains(&*backup_of("first").to_string_lossy()),
        "{error}"
    );
    steps(&backup_of("first"), &data, STEPS.len());
    prepare("second").expect("not refused after");
}

#[test]
fn a_restore_stopped_after_any_step_is_finished_by_the_next() {
    // Fails if a step cannot be repeated, is not covered by restore.json, or leaves files that the
    // second run takes for others.
    let scratch = tempfile::tempdir().expect("a directory");
    let at = |name: &str| scratch.path().join(name);
    serve(&at("own"), 3, Some(&at("older")));
    create::create(
        &at("own"),
        &at("backup"),
        &Shutdown::default(),
        &mut |_, _| {},
    )
    .expect("a backup");
    serve(&at("own"), 2, Some(&at("newer")));
    serve(&at("other"), 4, Some(&at("fresh")));
    fs::create_dir(at("empty")).expect("created");
    let own = 5;
    for (target, events) in [
        ("empty", own),
        ("older", own),
        ("newer", own + 4),
        ("fresh", own + 6),
    ] {
        for first in 0..=STEPS.len() {
            for second in [0, STEPS.len() - 1] {
                let case = format!("{target}, {first} steps, then {second}");
                let data = at("data");
                fs::create_dir(&data).expect("created");
                copy_tree(&at(target), &data);
                for count in [first, second] {
                    steps(&at("backup"), &data, count);
                    if count > 0 && count < STEPS.len() {
                        refuse_unfinished(&data).expect_err("unfinished");
                    }
                    // The first step only writes the file.
                    if count > 1 && count < STEPS.len() {
                        Marker::remove(&data).expect("removed");
                        refuse_unfinished(&data).expect_err("still unfinished");
                    }
                }
                steps(&at("backup"), &data, STEPS.len());
                refuse_unfinished(&data).expect("finished");
                let disk: Arc<dyn Disk> = Arc::new(RealDisk);
                let config = ProcessorConfig::new(&data);
                processor::seal(&data, &Database::in_dir(&data), &disk).expect("sealed");
                let summary = run_once(&config, &disk, &[], &mut |_| {}).expect("it runs");
                assert!(summary.refused.is_empty(), "{case}: {summary:?}");
                assert!(summary.missing.is_empty(), "{case}: {summary:?}");
                let checks = read_checks(&data.join(DATABASE_FILE)).expect("read");
                let checks = checks.expect("a database");
                let expected = (events, i64::try_from(events).expect("few") * 1_000_000);
                assert_eq!(checks.segments, expected, "{case}");
                assert_eq!(checks.totals, expected, "{case}");
                let verdict = verify(&Target::new(&data), &RealDisk, &mut |_| {}, &mut |_, _| {})
                    .expect("recounted")
                    .expect("a database");
                assert!(verdict.agrees(), "{case}: {verdict:?}");
                fs::remove_dir_all(&data).expect("removed");
            }
        }
    }
}
