//! A PostgreSQL server of the test's own, in a temporary directory, and a standby of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postgres::{Client, NoTls};
use rustix::process::Signal;

use super::{PATIENCE, Process, Ran, arg, run, until};

/// `tallyline process` with the totals in that database.
#[track_caller]
pub(crate) fn process(data: &Path, url: &str, files: &[&Path]) -> Ran {
    let mut args = vec!["process", "--data-dir", arg(data), "--database", url];
    args.extend(files.iter().map(|file| arg(file)));
    run(&args)
}

/// `tallyline verify` agrees.
#[track_caller]
pub(crate) fn verify(data: &Path, url: &str) {
    run(&["verify", "--data-dir", arg(data), "--database", url]).expect(0);
}

/// Where Debian's package has the programs.
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A running server; the superuser is `postgres`, without a password. Killed on drop.
pub(crate) struct Postgres {
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    process: Option<Process>,
    settings: Vec<String>,
}

/// The user who runs servers: PostgreSQL refuses to run as root.
fn server_user() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then(|| {
        let id = |flag| {
            let output = Command::new("id")
                .args([flag, "postgres"])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.trim().parse().unwrap_or(65534)
        };
        (id("-u"), id("-g"))
    })
}

/// A command that runs as that user.
fn as_server(program: &str) -> Command {
    let path = if program.contains('/') {
        program.into()
    } else {
        Path::new(BIN).join(program)
    };
    assert!(
        path.exists(),
        "this test needs {}: install the Debian package",
        path.display()
    );
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("LC_ALL", "C.UTF-8");
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command.current_dir("/");
    command
}

#[track_caller]
fn succeed(command: &mut Command) {
    let ran = Process::start(command).finish();
    assert_eq!(ran.code, Some(0), "{command:?}: {ran}");
}

/// A directory that the server's user owns.
fn server_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("tallyline-pg-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .unwrap();
    if let Some((user, group)) = server_user() {
        chown(dir.path(), Some(user), Some(group)).unwrap();
    }
    dir
}

/// A port on which nothing listens. It may be in use again when the server starts, which then fails.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Postgres {
    /// A new server with the default settings.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A new server with more settings, such as `max_connections=500`.
    pub(crate) fn with(settings: &[&str]) -> Self {
        Self::initialized(&["-E", "UTF8", "--locale=C.UTF-8"], settings)
    }

    /// A new server with these arguments of `initdb`.
    pub(crate) fn initialized(flags: &[&str], settings: &[&str]) -> Self {
        let dir = server_dir();
        let data = dir.path().join("data");
        succeed(
            as_server("initdb")
                .args(["-D", arg(&data), "-U", "postgres", "-A", "trust", "-N"])
                .args(flags),
        );
        let mut server = Self {
            dir,
            port: 0,
            process: None,
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
        };
        server.start_again();
        server
    }

    /// The directory of its files.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts it, after [`Postgres::kill`] or [`Postgres::stop`], and waits until it accepts connections.
    pub(crate) fn start_again(&mut self) {
        // A port that was free may be taken by another test.
        for _ in 0..10 {
            if self.port == 0 {
                self.port = free_port();
            }
            let mut command = as_server("postgres");
            command.args(["-D", arg(&self.data()), "-p", &self.port.to_string()]);
            command.args(["-k", arg(self.dir.path()), "-h", "127.0.0.1"]);
            // A killed server keeps what it wrote in the page cache, so no sync is needed.
            for setting in [
                "fsync=off",
                "max_connections=100",
                "wal_level=replica",
                "restart_after_crash=on",
            ] {
                command.args(["-c", setting]);
            }
            for setting in &self.settings {
                command.args(["-c", setting]);
            }
            let mut process = Process::start(&mut command);
            let started = until(PATIENCE, "PostgreSQL starts", || {
                if process.exited().is_some() {
                    return Some(false);
                }
                self.try_connect("postgres").is_some().then_some(true)
            });
            if started {
                self.process = Some(process);
                return;
            }
            assert!(
                process.stderr().contains("Address already in use"),
                "{}",
                process.stderr()
            );
            self.port = 0;
        }
        panic!("no free port for PostgreSQL");
    }

    /// The URL of a database, for the superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    fn try_connect(&self, database: &str) -> Option<Client> {
        Client::connect(&self.url(database), NoTls).ok()
    }

    /// A connection of the superuser.
    #[track_caller]
    pub(crate) fn connect(&self, database: &str) -> Client {
        Client::connect(&self.url(database), NoTls).unwrap()
    }

    /// Runs statements, one by one.
    #[track_caller]
    pub(crate) fn run(&self, database: &str, statements: &str) {
        let mut client = self.connect(database);
        for statement in statements.split("; ") {
            client.batch_execute(statement).unwrap();
        }
    }

    /// The only value of a query.
    #[track_caller]
    pub(crate) fn value<T: for<'r> postgres::types::FromSql<'r>>(
        &self,
        database: &str,
        query: &str,
    ) -> T {
        self.connect(database).query_one(query, &[]).unwrap().get(0)
    }

    /// Creates an empty database and returns its URL.
    #[track_caller]
    pub(crate) fn database(&self, name: &str) -> String {
        self.run("postgres", &format!("CREATE DATABASE {name}"));
        self.url(name)
    }

    /// A database as the SQL of `pg_dump`.
    pub(crate) fn dump(&self, database: &str) -> String {
        let url = self.url(database);
        let ran = Process::start(as_server("pg_dump").arg(url)).finish();
        assert_eq!(ran.code, Some(0), "{ran}");
        ran.stdout
    }

    /// Creates a database with the content of a dump, and returns its URL.
    pub(crate) fn restore(&self, database: &str, dump: &str) -> String {
        let url = self.database(database);
        let file = self.dir.path().join(format!("{database}.sql"));
        fs::write(&file, dump).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        succeed(
            as_server("psql")
                .args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1"])
                .args(["--file", arg(&file), &url]),
        );
        url
    }

    /// Adds a setting, which applies from the next start on.
    pub(crate) fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Sends SIGKILL to the server and all its processes. [`Postgres::start_again`] lets it recover.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.id()));
        process.kill();
        for child in children.unwrap_or_default().split_whitespace() {
            if let Some(pid) = child.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _gone = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        // The processes hold the shared memory, without which the server cannot start.
        until(PATIENCE, "the processes of PostgreSQL end", || {
            let socket = std::net::TcpStream::connect(("127.0.0.1", self.port));
            socket.is_err().then_some(())
        });
    }

    /// Stops it at once, with open connections.
    pub(crate) fn stop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        process.signal(Signal::INT);
        process.finish();
    }

    /// Stops the processes without ending them: connections stay open, and nothing responds.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// A standby that follows this server.
    pub(crate) fn standby(&self) -> Self {
        let dir = server_dir();
        let data = dir.path().join("data");
        succeed(as_server("pg_basebackup").args([
            "-D",
            arg(&data),
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ]));
        let mut standby = Self {
            dir,
            port: 0,
            process: None,
            settings: vec!["hot_standby=on".to_owned()],
        };
        standby.start_again();
        standby
    }

    /// Waits until a standby has replayed everything that this server has committed.
    pub(crate) fn await_standby(&self, standby: &Self) {
        let end: String = self.value("postgres", "SELECT pg_current_wal_lsn()::text");
        until(PATIENCE, "the standby follows", || {
            let query = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
            standby.value::<bool>("postgres", &query).then_some(())
        });
    }

    /// Makes a standby the primary server.
    pub(crate) fn promote(&self) {
        let promoted: bool = self.value("postgres", "SELECT pg_promote(true, 60)");
        assert!(promoted);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pgbouncer in transaction mode in front of a server.
pub(crate) struct Bouncer {
    _dir: tempfile::TempDir,
    _process: Process,
    port: u16,
}

impl Bouncer {
    pub(crate) fn start(server: &Postgres, pool_size: u32) -> Self {
        let dir = server_dir();
        let port = free_port();
        let config = dir.path().join("pgbouncer.ini");
        let users = dir.path().join("users.txt");
        fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = {pool_size}\n",
            server.port,
            users.display()
        );
        fs::write(&config, text).unwrap();
        for path in [&config, &users] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let process = Process::start(as_server("/usr/sbin/pgbouncer").arg(&config));
        let bouncer = Self {
            _dir: dir,
            _process: process,
            port,
        };
        until(Duration::from_secs(20), "pgbouncer responds", || {
            Client::connect(&bouncer.url("postgres"), NoTls)
                .ok()
                .map(drop)
        });
        bouncer
    }

    /// The URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}
