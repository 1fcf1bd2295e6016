//! Databases that the program cannot use: what `process` and `/readyz` report (`--ignored`: needs PostgreSQL 15 and
//! openssl). `scale_out` has the encoding, the rights, a newer version and a server that is away; `nodes` has every
//! reason of the connection alone.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use super::harness::postgres::Postgres;
use super::harness::{PATIENCE, Process, Scratch, Server, arg, event, run, until};

/// A certificate for localhost that is its own authority: `NAME.crt` and `NAME.key`.
fn certificate(dir: &Path, name: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(dir).args([
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-subj",
        "/CN=server",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]);
    command.args([
        "-keyout",
        &format!("{name}.key"),
        "-out",
        &format!("{name}.crt"),
    ]);
    let ran = Process::start(&mut command).finish();
    assert_eq!(ran.code, Some(0), "{ran}");
}

/// A server that requires TLS and a password for the user `tally`.
fn strict_server(scratch: &Scratch) -> Postgres {
    let mut server = Postgres::start();
    server.run(
        "postgres",
        "CREATE ROLE tally LOGIN PASSWORD 'right'; CREATE DATABASE tally OWNER tally; CREATE ROLE other LOGIN",
    );
    server.stop();
    for name in ["server.key", "server.crt"] {
        let to = server.data().join(name);
        fs::copy(scratch.path().join(name), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        let owner = fs::metadata(server.data()).unwrap();
        chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let rules = "hostssl all tally all scram-sha-256\nhost all postgres all trust\n";
    fs::write(server.data().join("pg_hba.conf"), rules).unwrap();
    server.set("ssl=on");
    server.start_again();
    server
}

#[test]
#[ignore = "needs PostgreSQL and openssl"]
fn a_wrong_password_or_certificate_is_reported_and_ends_no_server() {
    // Fails if one of these is retried for ever without a report, reported without the way out, or accepted; or if
    // a server refuses events because of it.
    let scratch = Scratch::new();
    for name in ["server", "other"] {
        certificate(scratch.path(), name);
    }
    let server = strict_server(&scratch);
    let port = server.port;
    let roots = |name: &str| format!("sslrootcert={}", arg(&scratch.path().join(name)));
    let (right, other) = (roots("server.crt"), roots("other.crt"));
    let url = |user: &str, host: &str, parameters: &str| {
        format!("postgres://{user}@{host}:{port}/tally?{parameters}")
    };
    // A port on which another program listens, which does not speak this protocol.
    let web = Server::start(&scratch.path().join("web"));
    let data = scratch.data();
    for (url, reason) in [
        (
            url("tally:secret", "localhost", ""),
            "check the user and the password",
        ),
        (url("other", "localhost", ""), "pg_hba.conf"),
        (
            url("tally:secret", "localhost", "sslmode=disable"),
            "pg_hba.conf",
        ),
        (
            url(
                "tally:right",
                "localhost",
                &format!("sslmode=verify-full&{other}"),
            ),
            "sslrootcert",
        ),
        (
            url(
                "tally:right",
                "127.0.0.1",
                &format!("sslmode=verify-full&{right}"),
            ),
            "sslmode",
        ),
        (
            url(
                "tally:right",
                "localhost",
                "sslmode=verify-full&sslrootcert=/nonexistent",
            ),
            "/nonexistent",
        ),
        (
            format!("postgres://tally:right@no-such-host.invalid:{port}/tally"),
            "no-such-host",
        ),
        (
            format!(
                "postgres://tally:right@127.0.0.1:{}/tally?connect_timeout=2",
                web.port
            ),
            "cannot connect to it",
        ),
    ] {
        let ran = run(&["process", "--data-dir", arg(&data), "--database", &url]).expect(1);
        assert!(ran.stderr.contains(reason), "process {url}: {ran}");
        assert!(!ran.stderr.contains("panicked"), "{ran}");
        let shown = format!("{ran}");
        assert!(
            !shown.contains("secret") && !shown.contains("right"),
            "{ran}"
        );
    }
    let wrong = url(
        "tally:secret",
        "localhost",
        &format!("sslmode=verify-full&{right}"),
    );
    let node = Server::with(&data, &["--database", &wrong]);
    node.accept(event("u", 1));
    let ready = until(PATIENCE, "the server reports the password", || {
        let ready = node.get("/readyz");
        let text = ready.text();
        (ready.status == 503 && text.contains("check the user and the password")).then_some(text)
    });
    assert!(!ready.contains("secret"), "{ready}");
    // The password is changed at the server: what was accepted is applied without a restart.
    server.run("postgres", "ALTER ROLE tally PASSWORD 'secret'");
    until(PATIENCE, "the server is ready", || {
        (node.get("/readyz").status == 200).then_some(())
    });
    until(PATIENCE, "the event is counted", || {
        (node.get("/userEvents/u").status == 200).then_some(())
    });
    node.stop().expect(0);
}

#[test]
fn a_server_is_not_ready_before_it_has_opened_the_shared_database() {
    // Fails if readiness is green until the first error: a load balancer would send requests to a server that has
    // not registered yet.
    let scratch = Scratch::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgres://tally@127.0.0.1:{port}/tally?connect_timeout=60");
    let node = Server::with(&scratch.data(), &["--database", &url]);
    let ready = node.get("/readyz").expect(503).text();
    assert!(ready.contains("being opened"), "{ready}");
}
