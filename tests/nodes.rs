//! Connections to PostgreSQL, its tables, and the identity of nodes (`--ignored`: needs PostgreSQL 15).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;

use postgres::Client;
use rustix::process::Signal;
use tallyline::data_dir::Directory;
use tallyline::data_dir::disk::RealDisk;
use tallyline::data_dir::node_tokens::{NodeToken, NodeTokens};
use tallyline::store::postgres::{Node, Target, ensure_tables};
use tallyline::store::{NodeReport, StoreError};
use uuid::Uuid;

use crate::harness::cutting_proxy::CuttingProxy;
use crate::harness::postgres::{Bouncer, Postgres, process, verify};
use crate::harness::{PATIENCE, Process, Ran, Scratch, arg, event, run, tallyline, until};

fn target(url: &str) -> Target {
    Target::parse(url).unwrap()
}

/// A connection to a database with tables.
fn open(target: &Target) -> Client {
    let mut client = target.connect().unwrap();
    ensure_tables(&mut client, target).unwrap();
    client
}

/// A data directory with a UUID.
fn data_dir(scratch: &Scratch, name: &str) -> (std::path::PathBuf, Uuid) {
    let dir = scratch.path().join(name);
    fs::create_dir_all(&dir).unwrap();
    let directory = Directory::establish(&RealDisk, &dir, None, 0).unwrap();
    (dir, directory.id)
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[track_caller]
fn reason_of<T>(result: Result<T, StoreError>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

/// Whether the process may still write as the node.
fn holds(node: &Node, client: &mut Client, target: &Target) -> bool {
    let mut transaction = target.begin(client).unwrap();
    node.check(&mut transaction, target).is_ok()
}

/// What a process does that was the node: it stays the node, or acquires it again.
fn resume(
    held: &Node,
    client: &mut Client,
    target: &Target,
    dir: &Path,
    id: Uuid,
) -> Result<Node, StoreError> {
    if holds(held, client, target) {
        return Ok(held.clone());
    }
    Node::acquire(client, target, dir, id)
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_server_without_what_is_needed_is_refused_with_the_reason() {
    // Fails if a wrong URL, server or right is retried forever, or reported without what to do.
    let server = Postgres::start();
    let refused = |url: &str| {
        reason_of(
            target(url)
                .connect()
                .and_then(|mut client| ensure_tables(&mut client, &target(url))),
        )
    };
    let port = server.port;
    assert!(refused(&server.url("missing")).contains("createdb"));

    server.run(
        "postgres",
        "CREATE ROLE weak LOGIN PASSWORD 'right'; CREATE DATABASE rights",
    );
    let weak = format!("postgres://weak@127.0.0.1:{port}/rights");
    let error = refused(&weak);
    assert!(
        error.contains("permission denied")
            && error.contains("CREATE SCHEMA tallyline AUTHORIZATION"),
        "{error}"
    );
    open(&target(&server.url("rights")));
    let error = refused(&weak);
    assert!(
        error.contains("permission denied") || error.contains("GRANT"),
        "{error}"
    );
    server.run("rights", "GRANT USAGE ON SCHEMA tallyline TO weak; GRANT SELECT ON ALL TABLES IN SCHEMA tallyline TO weak");
    let error = refused(&weak);
    assert!(
        error.contains("user_total") && error.contains("GRANT SELECT, INSERT"),
        "{error}"
    );
    server.run(
        "rights",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tallyline TO weak",
    );
    open(&target(&weak));

    server.run("rights", "UPDATE tallyline.cluster SET version = 99");
    let error = refused(&server.url("rights"));
    assert!(error.contains("99") && error.contains("newer"), "{error}");

    server.run(
        "postgres",
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    let error = refused(&server.url("latin"));
    assert!(
        error.contains("LATIN1") && error.contains("UTF8"),
        "{error}"
    );

    server.run(
        "postgres",
        "CREATE DATABASE readonly; ALTER DATABASE readonly SET default_transaction_read_only = on",
    );
    let error = refused(&server.url("readonly"));
    assert!(error.contains("read-only"), "{error}");

    let standby = server.standby();
    let error = refused(&standby.url("rights"));
    assert!(error.contains("standby"), "{error}");
    // Both in the URL: the one that accepts writes is used.
    server.database("several");
    let several = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{port}/several",
        standby.port
    );
    open(&target(&several));

    // Nothing listens there any more.
    drop(standby);
    drop(server);
    let error = refused(&format!("postgres://postgres:secret@127.0.0.1:{port}/x"));
    assert!(
        error.contains("refused") && !error.contains("secret"),
        "{error}"
    );
}

#[test]
#[ignore = "needs PostgreSQL"]
fn tables_of_the_version_before_are_upgraded_and_then_as_new_ones() {
    // Fails if a column, a comment or an index differs, if the labels in names are not stored, or if a reader
    // gets an SQL error instead of what to do.
    let server = Postgres::start();
    let (old, new) = (server.database("old"), server.database("new"));
    open(&target(&new));
    let scratch = Scratch::new();
    let data = scratch.data();
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("events_a.jsonl"), event("u", 1)).unwrap();
    process(&data, &old, &[]).expect(0);
    let label = "000042-5e3fa1c29b77d0e4";
    let insert = |name: &str, key: i32| {
        format!("INSERT INTO tallyline.segment (node, key, name, file_name, state, applied_bytes, checksum, created_at_ms)
                 VALUES (7, {key}, '{name}', 'f', 'sealed', 1, 1, 1);")
    };
    let part = format!("events_segment-{label}_from-1834-9ae0daaf_to-2310-1c291ca3.jsonl");
    let sealed = format!("events-2026-11-22T06-41-00.123Z-{label}-2310-1c291ca3.jsonl");
    server.run(
        "old",
        &[
            "DROP INDEX tallyline.segment_label;
             ALTER TABLE tallyline.segment DROP COLUMN label;
             UPDATE tallyline.cluster SET version = 1;",
            &insert(&part, -1),
            &insert(&sealed, -2),
            &insert("events_a.jsonl", -3),
        ]
        .concat(),
    );
    let ran = run(&["verify", "--data-dir", arg(&data), "--database", &old]).expect(1);
    assert!(ran.stderr.contains("which upgrade the tables"), "{ran}");
    process(&data, &old, &[]).expect(0);
    verify(&data, &old);
    let shape = |database: &str| -> String {
        server.value(
            database,
            "SELECT string_agg(t, E'\\n' ORDER BY t) FROM (
                 SELECT concat_ws(' ', c.table_name, c.column_name, c.data_type, c.collation_name, c.is_nullable, c.column_default,
                                  col_description(format('tallyline.%s', c.table_name)::regclass, c.ordinal_position)) AS t
                 FROM information_schema.columns AS c WHERE c.table_schema = 'tallyline'
                 UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'tallyline'
                 UNION ALL SELECT 'version ' || version FROM tallyline.cluster) AS x",
        )
    };
    assert!(shape("new").contains("label"));
    assert_eq!(shape("old"), shape("new"));
    let labelled: i64 = server.value(
        "old",
        &format!("SELECT count(*) FROM tallyline.segment WHERE label = '{label}'"),
    );
    let others: i64 = server.value(
        "old",
        "SELECT count(*) FROM tallyline.segment WHERE label IS NULL",
    );
    assert_eq!((labelled, others), (2, 2));
}

#[expect(clippy::too_many_lines, reason = "one server with many cases")]
#[test]
#[ignore = "needs PostgreSQL"]
fn passwords_and_certificates_are_those_of_psql() {
    // Fails if a password file is not read, or a certificate that sslmode rejects is accepted.
    let scratch = Scratch::new();
    let mut server = Postgres::start();
    server.run(
        "postgres",
        "CREATE ROLE tally LOGIN SUPERUSER PASSWORD 'pw'; CREATE DATABASE tally OWNER tally",
    );
    let dir = scratch.path();
    let openssl = |args: &[&str]| {
        let ran = Process::start(Command::new("openssl").args(args).current_dir(dir)).finish();
        assert_eq!(ran.code, Some(0), "{args:?}: {ran}");
    };
    let ec = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    for ca in ["ca", "other"] {
        let (key, crt) = (format!("{ca}.key"), format!("{ca}.crt"));
        let own = [
            "req", "-x509", "-subj", "/CN=root", "-keyout", &key, "-out", &crt,
        ];
        openssl(&[&own[..], &ec[..]].concat());
    }
    openssl(
        &[
            &[
                "req",
                "-subj",
                "/CN=server",
                "-keyout",
                "server.key",
                "-out",
                "server.csr",
            ][..],
            &ec[..5],
        ]
        .concat(),
    );
    scratch.file("names", "subjectAltName=DNS:localhost\n");
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "server.crt",
    ]);
    server.stop();
    for name in ["server.key", "server.crt"] {
        let to = server.data().join(name);
        fs::copy(dir.join(name), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        let owner = fs::metadata(server.data()).unwrap();
        chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let hba = server.data().join("pg_hba.conf");
    fs::write(
        &hba,
        "hostssl all tally all scram-sha-256\nhost all postgres all trust\n",
    )
    .unwrap();
    server.set("ssl=on");
    server.start_again();

    let port = server.port;
    let connect = |host: &str, parameters: &str| {
        let url = format!("postgres://tally@{host}:{port}/tally?{parameters}");
        let connected = target(&url).connect();
        connected.map(|mut client| {
            let row = client.query_one(
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
                &[],
            );
            row.unwrap().get::<_, bool>(0)
        })
    };
    let password = scratch.file("password", "pw\n");
    let passfile = scratch.file(
        "pgpass",
        format!("localhost:{port}:tally:tally:pw\n127.0.0.1:*:*:*:wrong\n"),
    );
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let with = format!("password_file={}", arg(&password));
    let ca = format!("sslrootcert={}", arg(&dir.join("ca.crt")));
    let other = format!("sslrootcert={}", arg(&dir.join("other.crt")));
    for (host, parameters, encrypted) in [
        ("localhost", with.clone(), true),
        ("localhost", format!("passfile={}", arg(&passfile)), true),
        ("localhost", format!("{with}&sslmode=require"), true),
        ("127.0.0.1", format!("{with}&sslmode=require&{ca}"), true),
        ("127.0.0.1", format!("{with}&sslmode=verify-ca&{ca}"), true),
        (
            "localhost",
            format!("{with}&sslmode=verify-full&{ca}"),
            true,
        ),
        (
            "localhost",
            format!(
                "{with}&sslmode=verify-full&sslrootcert={}",
                arg(&dir.join("server.crt"))
            ),
            true,
        ),
    ] {
        assert_eq!(
            connect(host, &parameters).unwrap(),
            encrypted,
            "{host} {parameters}"
        );
    }
    for (host, parameters, text) in [
        (
            "localhost",
            "passfile=/nonexistent".to_owned(),
            "PGPASSWORD",
        ),
        (
            "127.0.0.1",
            format!("passfile={}", arg(&passfile)),
            "check the user and the password",
        ),
        (
            "localhost",
            format!("{with}&sslmode=disable"),
            "pg_hba.conf",
        ),
        (
            "localhost",
            format!("{with}&sslmode=require&{other}"),
            "sslrootcert",
        ),
        (
            "localhost",
            format!("{with}&sslmode=verify-ca&{other}"),
            "sslrootcert",
        ),
        (
            "127.0.0.1",
            format!("{with}&sslmode=verify-full&{ca}"),
            "sslmode",
        ),
        (
            "localhost",
            format!("{with}&sslmode=verify-full&sslrootcert={}", arg(&password)),
            "no certificate",
        ),
        (
            "localhost",
            format!("{with}&sslmode=verify-ca&sslrootcert=/nonexistent"),
            "/nonexistent",
        ),
    ] {
        let error = reason_of(connect(host, &parameters));
        assert!(error.contains(text), "{host} {parameters}: {error}");
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn many_nodes_create_the_tables_once() {
    // Fails if the statements of two nodes interleave: without the advisory lock, the loser of the race must
    // find the tables of the winner.
    let server = Postgres::start();
    server.run("postgres", "CREATE ROLE tally LOGIN");
    for (name, locked) in [("locked", true), ("unlocked", false)] {
        server.run("postgres", &format!("CREATE DATABASE {name} OWNER tally"));
        if !locked {
            server.run(
                name,
                "REVOKE EXECUTE ON FUNCTION pg_advisory_xact_lock(bigint) FROM PUBLIC",
            );
        }
        let url = format!("postgres://tally@127.0.0.1:{}/{name}", server.port);
        let starts: Vec<_> = (0..12)
            .map(|_| {
                let target = target(&url);
                thread::spawn(move || open(&target))
            })
            .collect();
        for start in starts {
            start.join().unwrap();
        }
        assert_eq!(
            server.value::<i64>(name, "SELECT count(*) FROM tallyline.cluster"),
            1
        );
        let undocumented = "SELECT count(*) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0
             WHERE relnamespace = 'tallyline'::regnamespace AND relkind IN ('r', 'v')
               AND (col_description(c.oid, attnum) IS NULL OR obj_description(c.oid) IS NULL)";
        assert_eq!(server.value::<i64>(name, undocumented), 0);
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn many_nodes_register_at_once_with_a_number_each() {
    // Fails if two nodes get one number, so that their rows are mixed, or if a node fails because others register.
    const NODES: i32 = 32;
    let server = Postgres::start();
    let target = target(&server.database("tally"));
    let scratch = Scratch::new();
    open(&target);
    let together = Arc::new(Barrier::new(NODES as usize));
    let starts: Vec<_> = (0..NODES)
        .map(|at| {
            let (dir, id) = data_dir(&scratch, &at.to_string());
            let (target, together) = (target.clone(), Arc::clone(&together));
            let mut client = open(&target);
            thread::spawn(move || {
                together.wait();
                Node::acquire(&mut client, &target, &dir, id).map(|node| node.number)
            })
        })
        .collect();
    let numbers: Result<BTreeSet<i32>, _> = starts
        .into_iter()
        .map(|start| start.join().unwrap())
        .collect();
    assert_eq!(numbers.unwrap(), (1..=NODES).collect());
}

#[test]
#[ignore = "needs PostgreSQL"]
fn many_processes_start_at_once_in_an_empty_database() {
    // Fails if `process` of a new node fails because others create the tables or register at the same time.
    let server = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let processes: Vec<_> = (0..16)
        .map(|at| {
            let dir = scratch.path().join(at.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("events.jsonl"), event("user", 1)).unwrap();
            Process::start(&mut tallyline(&[
                "process",
                "--data-dir",
                arg(&dir),
                "--database",
                &url,
            ]))
        })
        .collect();
    for process in processes {
        process.finish().expect(0);
    }
    let counted = "SELECT sum(events)::bigint FROM tallyline.user_total WHERE user_id = 'user'";
    assert_eq!(server.value::<i64>("tally", counted), 16);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_restart_acquires_the_node_and_fences_the_process_before() {
    // Fails if a process that was replaced can still write, or if a crash between node.json and the database
    // locks the node out.
    let server = Postgres::start();
    let target = target(&server.database("tally"));
    let scratch = Scratch::new();
    let (dir, id) = data_dir(&scratch, "a");
    let mut client = open(&target);
    let first = Node::acquire(&mut client, &target, &dir, id).unwrap();
    assert!(holds(&first, &mut client, &target));
    assert_eq!(
        resume(&first, &mut client, &target, &dir, id).unwrap(),
        first
    );
    let second = Node::acquire(&mut client, &target, &dir, id).unwrap();
    assert_eq!(second.number, first.number);
    assert!(!holds(&first, &mut client, &target));
    assert!(holds(&second, &mut client, &target));

    // A token that was written to the file and never to the database.
    let mut tokens = NodeTokens::read(&RealDisk, &dir).unwrap();
    let unused = NodeToken {
        epoch: tokens.highest_epoch() + 1,
        token: Uuid::new_v4(),
        database: Uuid::new_v4(),
        system: None,
        confirmed: false,
    };
    tokens.add(&RealDisk, &dir, unused).unwrap();
    let third = Node::acquire(&mut client, &target, &dir, id).unwrap();
    assert!(holds(&third, &mut client, &target));

    // Acquiring waits for a transaction of the process before, and that one commits as the node.
    let mut rival = open(&target);
    let mut transaction = target.begin(&mut rival).unwrap();
    third.check(&mut transaction, &target).unwrap();
    let next = {
        let (target, dir) = (target.clone(), dir.clone());
        thread::spawn(move || {
            let mut client = open(&target);
            Node::acquire(&mut client, &target, &dir, id).unwrap()
        })
    };
    until(PATIENCE, "acquiring waits for the lock", || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        (server.value::<i64>("tally", waiting) > 0).then_some(())
    });
    transaction.commit().unwrap();
    let next = next.join().unwrap();
    assert!(!holds(&third, &mut client, &target));
    assert!(holds(&next, &mut client, &target));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_attempt_that_fails_before_its_commit_adds_no_token() {
    // Fails if a node that cannot be registered for days fills node.json, and forgets the token in the database.
    let server = Postgres::start();
    let target = target(&server.database("tally"));
    let scratch = Scratch::new();
    let (dir, id) = data_dir(&scratch, "a");
    let mut client = open(&target);
    let node = Node::acquire(&mut client, &target, &dir, id).unwrap();
    let before = NodeTokens::read(&RealDisk, &dir).unwrap();
    server.run(
        "tally",
        "ALTER TABLE tallyline.node ADD CONSTRAINT full_up CHECK (epoch < 2)",
    );
    for _ in 0..3 {
        reason_of(Node::acquire(&mut client, &target, &dir, id));
    }
    assert_eq!(NodeTokens::read(&RealDisk, &dir).unwrap(), before);
    assert!(holds(&node, &mut client, &target));
    server.run(
        "tally",
        "ALTER TABLE tallyline.node DROP CONSTRAINT full_up",
    );
    Node::acquire(&mut client, &target, &dir, id).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_commit_with_an_unknown_outcome_is_resolved_by_the_tokens() {
    // Fails if a node is refused, or acquired twice, when the answer to its commit is lost.
    let server = Postgres::start();
    let direct = target(&server.database("tally"));
    let scratch = Scratch::new();
    let mut client = open(&direct);
    let proxy = CuttingProxy::start(server.port, 7);
    let through = target(&proxy.url("tally"));
    let (dir, id) = data_dir(&scratch, "a");
    proxy.cut(true);
    let mut acquired = 0;
    while proxy.cuts().0 < 5 || proxy.cuts().1 < 5 {
        let node = through
            .connect()
            .and_then(|mut cut| Node::acquire(&mut cut, &through, &dir, id));
        match node {
            Ok(node) => {
                acquired += 1;
                assert!(holds(&node, &mut client, &direct));
            }
            Err(StoreError::Fenced { reason, .. }) => panic!("{reason}"),
            Err(_) => {}
        }
    }
    assert!(acquired > 0);
    let node = Node::acquire(&mut client, &direct, &dir, id).unwrap();
    assert!(holds(&node, &mut client, &direct));
    assert_eq!(
        server.value::<i64>("tally", "SELECT count(*) FROM tallyline.node"),
        1
    );
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copied_directory_is_refused_and_an_older_database_is_not() {
    // Fails if two copies of a directory are both the node, or if a node refuses a database that was restored.
    let server = Postgres::start();
    let target = target(&server.database("tally"));
    let scratch = Scratch::new();
    let (original, id) = data_dir(&scratch, "original");
    let mut client = open(&target);
    let first = Node::acquire(&mut client, &target, &original, id).unwrap();
    let before =
        server.value::<String>("tally", "SELECT epoch || ' ' || token FROM tallyline.node");

    // The copy acquires the node; the original notices, and is refused.
    let copy = scratch.path().join("copy");
    copy_files(&original, &copy);
    let copied = Node::acquire(&mut client, &target, &copy, id).unwrap();
    assert!(!holds(&first, &mut client, &target));
    let error = reason_of(resume(&first, &mut client, &target, &original, id));
    assert!(
        error.contains("another copy") && error.contains("nodes adopt"),
        "{error}"
    );
    assert!(holds(&copied, &mut client, &target));

    // The database is set back to an earlier state of the copy: a token of both directories.
    let (epoch, token) = before.split_once(' ').unwrap();
    server.run(
        "tally",
        &format!("UPDATE tallyline.node SET epoch = {epoch}, token = '{token}'"),
    );
    let again = resume(&copied, &mut client, &target, &copy, id).unwrap();
    assert!(holds(&again, &mut client, &target));
    // ... and to one before the node was registered.
    server.run("tally", "DELETE FROM tallyline.node");
    let registered = resume(&again, &mut client, &target, &copy, id).unwrap();
    assert!(holds(&registered, &mut client, &target));

    // Removed: refused for good.
    server.run(
        "tally",
        "UPDATE tallyline.node SET state = 'removed', epoch = epoch + 1, token = gen_random_uuid()",
    );
    let error = reason_of(resume(&registered, &mut client, &target, &copy, id));
    assert!(error.contains("removed"), "{error}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_older_database_is_reported_with_its_cause() {
    // S4. Fails if a node continues with a database that has lost commits, or with another server, and says nothing; if
    // what was lost does not count again; or if a restart looks like one of these.
    let server = Postgres::start();
    let other = Postgres::start();
    let url = server.database("tally");
    let scratch = Scratch::new();
    let data = scratch.path().join("a");
    let apply = |url: &str, file: Option<&Path>| {
        let mut args = vec!["process", "--data-dir", arg(&data), "--database", url];
        args.extend(file.map(arg));
        run(&args).expect(0).stderr
    };
    let files = ["1", "2"].map(|name| scratch.file(&format!("{name}.jsonl"), event(name, 1)));
    let [early, late] = [0, 1].map(|at| {
        let told = apply(&url, Some(&files[at]));
        assert!(!told.contains("the database is"), "{told}");
        server.dump("tally")
    });
    let totals = |url: &str| {
        let totals = crate::harness::suite::totals(url);
        assert_eq!(totals.len(), 2, "{url}");
        assert!(
            totals.values().all(|&total| total == (1_000_000, 1)),
            "{totals:?}"
        );
    };
    totals(&url);
    for (at, database, dump, reason) in [
        (
            &other,
            "moved",
            &late,
            "the database is on another PostgreSQL server than before",
        ),
        (
            &other,
            "lost",
            &early,
            "a standby without the last commits took over, or a backup was restored",
        ),
        (&server, "restored", &early, "it was restored from a backup"),
    ] {
        let url = at.restore(database, dump);
        let told = apply(&url, None);
        assert!(told.contains(reason), "{database}: {told}");
        let is_older = told.contains("the database is older than this node's last commit");
        assert_eq!(is_older, database != "moved", "{told}");
        totals(&url);
        let again = apply(&url, None);
        assert!(!again.contains("the database is"), "{database}: {again}");
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copied_directory_with_another_uuid_is_refused() {
    // Fails if the segments of a node can be counted again by a copy under another UUID.
    let server = Postgres::start();
    let target = target(&server.database("tally"));
    let scratch = Scratch::new();
    let (original, id) = data_dir(&scratch, "original");
    let mut client = open(&target);
    let node = Node::acquire(&mut client, &target, &original, id).unwrap();
    let insert = |number: u64, tag: &str| {
        let insert = format!(
            "INSERT INTO tallyline.segment (node, key, name, tag, file_name, state, applied_bytes, checksum, created_at_ms)
             VALUES ({}, {number}, 'events-{number:06}', '{tag}', 'x', 'sealed', 1, 1, 1)",
            node.number
        );
        server.run("tally", &insert);
    };
    insert(1, "00000000deadbeef");
    let (copy, other) = data_dir(&scratch, "copy");
    fs::create_dir_all(copy.join("applied/2026-11")).unwrap();
    fs::write(
        copy.join("applied/2026-11/events-2026-11-22T06-41-00.123Z-000001-00000000deadbeef-1-00000001.jsonl"),
        "x",
    )
    .unwrap();
    let error = reason_of(Node::acquire(&mut client, &target, &copy, other));
    assert!(
        error.contains("events-000001") && error.contains(&id.to_string()),
        "{error}"
    );
    assert_eq!(
        server.value::<i64>("tally", "SELECT count(*) FROM tallyline.node"),
        1
    );
    // The same with the active file, by the label in its first line.
    fs::remove_dir_all(copy.join("applied")).unwrap();
    let label = Directory::read(&RealDisk, &original)
        .unwrap()
        .unwrap()
        .label();
    insert(2, &label.tag.to_string());
    let line = format!(
        "{{}}{}\n",
        String::from_utf8(label.encode().into()).unwrap()
    );
    fs::write(copy.join("events.jsonl"), line).unwrap();
    let error = reason_of(Node::acquire(&mut client, &target, &copy, other));
    assert!(error.contains("events-000002"), "{error}");
    fs::remove_file(copy.join("events.jsonl")).unwrap();
    Node::acquire(&mut client, &target, &copy, other).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL and pgbouncer"]
fn a_pooler_in_transaction_mode_is_enough() {
    // Fails if anything depends on the session: a named statement, a search_path, a setting.
    let server = Postgres::start();
    server.database("tally");
    let bouncer = Bouncer::start(&server, 1);
    let target = target(&bouncer.url("tally"));
    let scratch = Scratch::new();
    for round in 0..3 {
        let (dir, id) = data_dir(&scratch, &round.to_string());
        let mut clients = [open(&target), open(&target)];
        let node = Node::acquire(&mut clients[0], &target, &dir, id).unwrap();
        for client in &mut clients {
            assert!(holds(&node, client, &target));
        }
    }
}

/// `tallyline ARGS... --database URL`.
#[track_caller]
fn nodes(args: &[&str], url: &str) -> Ran {
    run(&[&["nodes"], args, &["--database", url]].concat())
}

#[test]
#[ignore = "needs PostgreSQL"]
fn nodes_are_listed_adopted_and_removed() {
    // Fails if `nodes` changes anything without being asked to, or a removed or fenced node can still write.
    let server = Postgres::start();
    let url = server.database("tally");
    let target = target(&url);
    let scratch = Scratch::new();
    assert!(nodes(&[], &url).expect(0).stdout.contains("no nodes yet"));
    let (dir, id) = data_dir(&scratch, "a");
    let mut client = open(&target);
    let node = Node::acquire(&mut client, &target, &dir, id).unwrap();
    let report = NodeReport {
        pending_lines: 2048,
        lag_ms: 1500,
        reasons: String::new(),
    };
    node.report(&mut client, &target, &report).unwrap();
    let listed = nodes(&[], &url).expect(0).stdout;
    assert!(
        listed.contains(&id.to_string()) && listed.contains("2,048"),
        "{listed}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&nodes(&["--json"], &url).expect(0).stdout).unwrap();
    assert_eq!(json[0]["pendingLines"], 2048);
    assert_eq!(json[0]["lagSeconds"], 1.5);
    assert_eq!(json[0]["state"], "ready");

    // Restored from a backup: the token in the database is not known here.
    let backup = scratch.path().join("backup");
    copy_files(&dir, &backup);
    fs::remove_file(backup.join("node.json")).unwrap();
    assert!(reason_of(Node::acquire(&mut client, &target, &backup, id)).contains("nodes adopt"));
    let flag = format!("--data-dir={}", arg(&backup));
    let asked = nodes(&["adopt", &flag], &url).expect(2);
    assert!(
        asked.stderr.contains("--yes") && asked.stderr.contains(&id.to_string()),
        "{asked}"
    );
    assert!(holds(&node, &mut client, &target));
    nodes(&["adopt", &flag, "--yes"], &url).expect(0);
    assert!(!holds(&node, &mut client, &target));
    let node = Node::acquire(&mut client, &target, &backup, id).unwrap();

    let asked = nodes(&["remove", "1"], &url).expect(2);
    assert!(
        asked
            .stderr
            .contains("2,048 lines of its files were not applied"),
        "{asked}"
    );
    assert!(holds(&node, &mut client, &target));
    nodes(&["remove", &id.to_string(), "--yes"], &url).expect(0);
    assert!(!holds(&node, &mut client, &target));
    assert!(
        nodes(&["remove", "1", "--yes"], &url)
            .expect(0)
            .stdout
            .contains("was removed before")
    );
    assert!(reason_of(Node::acquire(&mut client, &target, &backup, id)).contains("removed"));
    assert!(
        nodes(&["adopt", &flag, "--yes"], &url)
            .expect(1)
            .stderr
            .contains("removed")
    );
    nodes(&["remove", "7", "--yes"], &url).expect(1);
    nodes(&[], &server.url("nowhere")).expect(1);
    nodes(&[], "mysql://x").expect(2);
    run(&["nodes"]).expect(2);
    let secret = run(&[
        "nodes",
        "--database",
        &format!("postgres://u:secret@127.0.0.1:{}/nowhere", server.port),
    ])
    .expect(1);
    assert!(!format!("{secret}").contains("secret"), "{secret}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_standby_that_lost_the_last_commits_keeps_its_nodes() {
    // Fails if a failover fences the nodes of the lost commits, or gives their number to another one.
    let mut primary = Postgres::start();
    let proxy = CuttingProxy::start(primary.port, 1);
    primary.database("tally");
    let target = target(&proxy.url("tally"));
    let scratch = Scratch::new();
    let (a, a_id) = data_dir(&scratch, "a");
    let (b, b_id) = data_dir(&scratch, "b");
    let (c, c_id) = data_dir(&scratch, "c");
    let mut client = open(&target);
    Node::acquire(&mut client, &target, &a, a_id).unwrap();
    let mut standby = primary.standby();
    primary.await_standby(&standby);
    standby.kill();
    // Lost: a second start of a, and b altogether.
    let lost_a = Node::acquire(&mut client, &target, &a, a_id).unwrap();
    let lost_b = Node::acquire(&mut client, &target, &b, b_id).unwrap();
    primary.kill();
    standby.start_again();
    standby.promote();
    proxy.switch_to(standby.port);

    let mut client = target.connect().unwrap();
    let new_c = Node::acquire(&mut client, &target, &c, c_id).unwrap();
    assert_eq!(new_c.number, lost_b.number, "the database does not know b");
    assert!(!holds(&lost_b, &mut client, &target));
    let new_a = resume(&lost_a, &mut client, &target, &a, a_id).unwrap();
    let new_b = resume(&lost_b, &mut client, &target, &b, b_id).unwrap();
    assert_eq!(new_a.number, lost_a.number);
    assert_ne!(new_b.number, new_c.number);
    for node in [&new_a, &new_b, &new_c] {
        assert!(holds(node, &mut client, &target));
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_server_that_does_not_respond_is_an_error_after_a_while() {
    // Fails if the processor waits forever for a server that accepts connections and does not answer.
    let server = Postgres::start();
    server.signal(Signal::STOP);
    let url = format!("{}?connect_timeout=1", server.url("postgres"));
    let error = reason_of(target(&url).connect());
    assert!(error.contains("cannot connect"), "{error}");
    server.signal(Signal::CONT);
    target(&url).connect().unwrap();
}
