//! `tallyline torture`: kills servers and senders at random moments, then checks the totals.
//!
//! The real server and real senders run as separate processes in a directory that the user names, to
//! test the disk under it. Every event has an id (the sender's `--source` and the line's number, or
//! one of its own), so an event that is sent again after a kill must be counted once. Half of the files
//! begin with lines that a sender has sent before or is sending at the same time, so that ranges of ids
//! overlap. With `--database`, two servers share a PostgreSQL database, and a sender continues at either of them
//! after a kill. The expected totals are computed here from the generated lines, without the code that is
//! tested.

#![expect(
    clippy::disallowed_methods,
    reason = "the servers are processes of their own"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::config::TortureConfig;
use crate::cli::exit::Exit;
use crate::cli::output::print;
use crate::event::{MICROS_PER_UNIT, Micros};
use crate::store::{Database, Listing, Order, Readers};

/// Number of concurrent senders.
const SENDERS: usize = 3;
/// Number of users. They are few, so that each round changes every total.
const USERS: u64 = 40;
/// Maximum time before a round kills a process.
const ROUND_MICROS_MAX: u64 = 250_000;
/// One round in so many makes a backup while the server runs, and restores it to the data directory
/// after the server was killed.
const BACKUP_EVERY: u64 = 10;
/// Maximum time for a process to start or to finish, before the run fails.
const PATIENCE: Duration = Duration::from_mins(2);

/// Runs the rounds and prints the table. [`Exit::Failed`] if a single event is wrong.
pub fn run(config: &TortureConfig) -> anyhow::Result<Exit> {
    if let Some(url) = &config.database {
        refuse_used(url)?;
    }
    let (dir, temporary) = directory(config.dir.as_deref())?;
    let seed = config.seed.unwrap_or_else(seed_of_now);
    let rounds = config.rounds.get();
    let words = format!(
        "torture: {rounds} rounds in {} with seed {seed}
",
        dir.display()
    );
    print(words.as_bytes())?;
    let mut torture = Torture {
        exe: std::env::current_exe().context("cannot tell where this program is")?,
        random: fastrand::Rng::with_seed(seed),
        servers: match &config.database {
            Some(_) => vec![None, None],
            None => vec![None],
        },
        database: config.database.clone(),
        reader: None,
        rounds: 0,
        senders: (0..SENDERS).map(Sender::new).collect(),
        expected: BTreeMap::new(),
        tally: Tally::default(),
        dir,
    };
    let bar = crate::cli::logging::bars()
        .add(ProgressBar::new(u64::from(rounds)))
        .with_style(
            ProgressStyle::with_template(
                "{bar:40} {pos}/{len} rounds, {elapsed} gone, {eta} left  {msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
    for _ in 0..rounds {
        torture.round()?;
        bar.set_message(torture.tally.in_short());
        bar.inc(1);
    }
    bar.finish_and_clear();
    let began = Instant::now();
    let verdict = torture.prove()?;
    let table = torture.tally.table(seed, rounds, began.elapsed(), &verdict);
    print(table.as_bytes())?;
    if verdict.is_empty() {
        return Ok(Exit::Done);
    }
    let kept = temporary.map(tempfile::TempDir::keep);
    tracing::error!(
        "the files of the failed run are in {}",
        kept.as_deref().unwrap_or(&torture.dir).display()
    );
    Ok(Exit::Failed)
}

/// Creates the directory of the run, or checks that it is empty.
fn directory(named: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    let Some(dir) = named else {
        let temporary = tempfile::TempDir::with_prefix("tallyline-torture-")
            .context("cannot create a temporary directory")?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut entries =
        fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    if entries.next().is_some() {
        let dir = dir.display();
        return Err(crate::cli::config::UsageError::new(format!(
            "--dir {dir} is not empty; name a new directory"
        ))
        .into());
    }
    Ok((fs::canonicalize(dir)?, None))
}

/// Rejects a database with nodes: their events would be in the totals, and this run's would stay in theirs.
fn refuse_used(url: &str) -> anyhow::Result<()> {
    #[cfg(feature = "postgres")]
    if let Database::Postgres(target) = parse(url)? {
        let members = crate::store::postgres::members(&mut target.connect()?, &target)?;
        ensure!(
            members.is_empty(),
            "cannot use {target}: it has {} nodes, whose totals this run would change; name an empty database",
            members.len()
        );
    }
    #[cfg(not(feature = "postgres"))]
    parse(url)?;
    Ok(())
}

fn parse(url: &str) -> anyhow::Result<Database> {
    let parsed = Database::parse(url);
    parsed
        .map_err(|error| crate::cli::config::UsageError::new(format!("--database: {error}")).into())
}

/// The name of a server's log.
fn server_name(at: usize) -> String {
    match at {
        0 => "server".to_owned(),
        at => format!("server-{}", at + 1),
    }
}

fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(32)
}

struct Torture {
    exe: PathBuf,
    dir: PathBuf,
    random: fastrand::Rng,
    /// Each has a data directory. Those that do not run are `None`.
    servers: Vec<Option<Server>>,
    /// The URL of the database that the servers share; `None`: the SQLite file of the only server.
    database: Option<String>,
    /// A process that opens the database, reads it and closes it; one runs at any time.
    reader: Option<Child>,
    rounds: u64,
    senders: Vec<Sender>,
    /// Expected total of each user: micros and number of events.
    expected: BTreeMap<String, (i64, u64)>,
    tally: Tally,
}

struct Server {
    child: Child,
    port: u16,
}

/// Sends one file until `send` reports that it is acknowledged, then the next.
struct Sender {
    name: String,
    files: u64,
    lines: u64,
    /// Lines of the last file that had ids of their own.
    with_id: Vec<String>,
    running: Option<Child>,
    /// Whether the whole file was sent.
    done: bool,
}

impl Sender {
    fn new(index: usize) -> Self {
        Self {
            name: format!("sender-{}", index + 1),
            files: 0,
            lines: 0,
            with_id: Vec::new(),
            running: None,
            done: true,
        }
    }

    fn file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-{}.jsonl", self.name, self.files))
    }
}

/// Counts for the table.
#[derive(Default)]
struct Tally {
    server_kills: u64,
    sender_kills: u64,
    files: u64,
    events: u64,
    overlapping: u64,
    starts: u64,
    slowest_start: Duration,
    torn_tails: u64,
    reads: u64,
    restores: u64,
}

impl Torture {
    fn round(&mut self) -> anyhow::Result<()> {
        self.rounds += 1;
        let ports = self.serving()?;
        self.keep_reading()?;
        for index in 0..self.senders.len() {
            self.keep_sending(index, &ports)?;
        }
        let wait = Duration::from_micros(self.random.u64(..ROUND_MICROS_MAX));
        std::thread::sleep(wait);
        self.keep_reading()?;
        if self.rounds.is_multiple_of(BACKUP_EVERY) && self.database.is_none() {
            return self.back_up_and_restore();
        }
        // Half the rounds kill the server, a quarter one sender, a quarter all processes.
        let victim = self.random.u64(..4);
        if victim != 0 {
            self.kill_servers(victim == 1)?;
        }
        let one = usize::try_from(self.random.u64(..SENDERS as u64)).unwrap_or_default();
        for index in 0..self.senders.len() {
            if victim == 1 || (victim == 0 && index == one) {
                self.kill_sender(index)?;
            }
        }
        Ok(())
    }

    /// Starts the servers that do not run. Returns the ports of all.
    fn serving(&mut self) -> anyhow::Result<Vec<u16>> {
        (0..self.servers.len()).map(|at| self.server(at)).collect()
    }

    fn server(&mut self, at: usize) -> anyhow::Result<u16> {
        let log = self.log(&server_name(at));
        if let Some(server) = &mut self.servers[at] {
            match server.child.try_wait()? {
                None => return Ok(server.port),
                Some(status) => bail!(
                    "the server ended unexpectedly ({status}); see {}",
                    log.display()
                ),
            }
        }
        let port_file = self.dir.join(format!("port{at}"));
        drop(fs::remove_file(&port_file));
        let began = Instant::now();
        let mut child = self
            .command(&server_name(at))?
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--rotate-size", "256KiB", "--flush-interval", "50ms"])
            .args(["--rotate-interval", "1s", "--data-dir"])
            .arg(self.data_dir(at))
            .arg("--port-file")
            .arg(&port_file)
            .spawn()
            .context("cannot start the server")?;
        let port = loop {
            let text = fs::read_to_string(&port_file).ok();
            if let Some(port) = text.and_then(|text| text.trim().parse().ok()) {
                break port;
            }
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the server could not start ({status}); see {}",
                    log.display()
                );
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "the server did not start in time; see {}",
                log.display()
            );
            std::thread::sleep(Duration::from_millis(2));
        };
        self.tally.starts += 1;
        self.tally.slowest_start = self.tally.slowest_start.max(began.elapsed());
        self.servers[at] = Some(Server { child, port });
        Ok(port)
    }

    /// Starts the sender with its file, or with a new one if that is acknowledged.
    fn keep_sending(&mut self, index: usize, ports: &[u16]) -> anyhow::Result<()> {
        if let Some(child) = &mut self.senders[index].running {
            let Some(status) = child.try_wait()? else {
                return Ok(());
            };
            self.sender_ended(index, status)?;
        }
        if self.senders[index].done {
            self.new_file(index)?;
        }
        self.send(index, ports)
    }

    /// Starts a reader if none runs. Each opens the database, adds up all users and closes it, as
    /// `sqlite3` does.
    fn keep_reading(&mut self) -> anyhow::Result<()> {
        if let Some(reader) = &mut self.reader {
            let Some(status) = reader.try_wait()? else {
                return Ok(());
            };
            self.reader = None;
            // The database does not exist before the first event.
            self.tally.reads += u64::from(status.success());
        }
        let child = self
            .command("reader")?
            .args(["query", "--json", "--data-dir"])
            .arg(self.data_dir(0))
            .spawn()
            .context("cannot start a reader")?;
        self.reader = Some(child);
        Ok(())
    }

    /// Makes a backup while everything runs, kills the server and restores the backup to the data
    /// directory. Newer files are kept, so no acknowledged event is lost.
    fn back_up_and_restore(&mut self) -> anyhow::Result<()> {
        let backup = self.dir.join("backup");
        let data_dir = self.data_dir(0);
        for (what, killed) in [("backup", false), ("restore", true)] {
            if killed {
                self.kill_servers(true)?;
            }
            let status = self
                .command(what)?
                .arg(what)
                .arg(&backup)
                .arg("--data-dir")
                .arg(&data_dir)
                .status()?;
            ensure!(
                status.success(),
                "{what} ended with {status}; see {}",
                self.log(what).display()
            );
        }
        self.tally.restores += 1;
        fs::remove_dir_all(&backup).with_context(|| format!("cannot remove {}", backup.display()))
    }

    /// Sends to any of the servers: an event counts once, whichever of them got it before.
    fn send(&mut self, index: usize, ports: &[u16]) -> anyhow::Result<()> {
        let at = self.random.u64(..ports.len() as u64);
        let port = ports[usize::try_from(at).unwrap_or_default()];
        let sender = &self.senders[index];
        let batch = 1 + self.random.u64(..200);
        let child = self
            .command(&sender.name)?
            .arg("send")
            .arg(sender.file(&self.dir))
            .args([
                "--to",
                &format!("http://127.0.0.1:{port}"),
                "--batch",
                &batch.to_string(),
                "--retry-for",
                "200ms",
            ])
            // The ids are made of the name and the line's number, so each event counts once.
            .args(["--source", &format!("{}-{}", sender.name, sender.files)])
            .spawn()
            .context("cannot start a sender")?;
        self.senders[index].running = Some(child);
        Ok(())
    }

    /// 0: all is acknowledged. After any other status the sender is started again.
    fn sender_ended(&mut self, index: usize, status: ExitStatus) -> anyhow::Result<()> {
        let sender = &mut self.senders[index];
        sender.running = None;
        ensure!(
            status.code() != Some(3),
            "{} reports that valid events were refused; see its log",
            sender.name
        );
        if status.success() {
            sender.done = true;
            fs::remove_file(sender.file(&self.dir))
                .context("cannot remove a file that was sent")?;
        }
        Ok(())
    }

    fn new_file(&mut self, index: usize) -> anyhow::Result<()> {
        let lines = 100 + self.random.u64(..8000);
        let own_ids = !(self.senders[index].files + index as u64).is_multiple_of(2);
        let mut text = String::new();
        if own_ids {
            let of = usize::try_from(self.random.u64(..SENDERS as u64)).unwrap_or_default();
            let sent = &self.senders[of].with_id;
            let mut place = || {
                let place = self.random.u64(..=sent.len() as u64);
                usize::try_from(place).unwrap_or_default()
            };
            let (one, other) = (place(), place());
            let again = &sent[one.min(other)..one.max(other)];
            text.extend(again.iter().map(String::as_str));
            self.tally.overlapping += again.len() as u64;
        }
        let from = self.random.u64(..lines);
        let sender = &mut self.senders[index];
        sender.files += 1;
        sender.done = false;
        if own_ids {
            sender.with_id.clear();
        }
        for _ in 0..lines {
            sender.lines += 1;
            let user = format!("user{}", self.random.u64(..USERS));
            let micros = self.random.u64(..1000 * MICROS_PER_UNIT);
            let add = self.random.u64(..10) < 7;
            let name = if add {
                "add_revenue"
            } else {
                "subtract_revenue"
            };
            let id = if own_ids {
                format!(r#""id": "{}-{:012}", "#, sender.name, sender.lines)
            } else {
                String::new()
            };
            let amount = i64::try_from(micros).unwrap_or_default();
            let value = Micros::from(amount);
            let line = format!(
                r#"{{{id}"userId": "{user}", "name": "{name}", "value": {value}}}
"#
            );
            text.push_str(&line);
            if own_ids {
                sender.with_id.push(line);
            }
            let total = self.expected.entry(user).or_default();
            total.0 += if add { amount } else { -amount };
            total.1 += 1;
        }
        // The sender comes back to a number that it has passed, and continues from there.
        let back = usize::try_from(from).unwrap_or_default();
        for line in sender
            .with_id
            .iter()
            .skip(back)
            .take(200)
            .filter(|_| own_ids)
        {
            text.push_str(line);
            self.tally.overlapping += 1;
        }
        self.tally.files += 1;
        self.tally.events += lines;
        let path = sender.file(&self.dir);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Kills all servers, or one.
    fn kill_servers(&mut self, all: bool) -> anyhow::Result<()> {
        let one = self.random.u64(..self.servers.len() as u64);
        for (at, server) in self.servers.iter_mut().enumerate() {
            if !all && at as u64 != one {
                continue;
            }
            if let Some(mut server) = server.take() {
                server.child.kill()?;
                server.child.wait()?;
                self.tally.server_kills += 1;
            }
        }
        Ok(())
    }

    fn kill_sender(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(child) = &mut self.senders[index].running else {
            return Ok(());
        };
        let ended = child.try_wait()?;
        if ended.is_none() {
            child.kill()?;
            self.tally.sender_kills += 1;
        }
        let status = child.wait()?;
        self.sender_ended(index, status)
    }

    /// Sends the remaining files, stops the server and checks the totals. Returns the faults.
    fn prove(&mut self) -> anyhow::Result<Vec<String>> {
        let ports = self.serving()?;
        let deadline = Instant::now() + PATIENCE;
        for index in 0..self.senders.len() {
            loop {
                if let Some(mut child) = self.senders[index].running.take() {
                    let status = child.wait()?;
                    self.sender_ended(index, status)?;
                }
                if self.senders[index].done {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "{} could not get its file acknowledged in time",
                    self.senders[index].name
                );
                self.send(index, &ports)?;
            }
        }
        if let Some(mut reader) = self.reader.take() {
            reader.wait()?;
        }
        self.stop_servers()?;
        let mut faults = self.compare()?;
        for at in 0..self.servers.len() {
            let verify = self
                .command("verify")?
                .arg("verify")
                .arg("--data-dir")
                .arg(self.data_dir(at))
                .status()?;
            if !verify.success() {
                faults.push(format!(
                    "verify ends with {verify}; see {}",
                    self.log("verify").display()
                ));
            }
            let quarantine = self.data_dir(at).join(crate::data_dir::QUARANTINE_DIR);
            self.tally.torn_tails += fs::read_dir(quarantine)?.count() as u64;
        }
        Ok(faults)
    }

    fn stop_servers(&mut self) -> anyhow::Result<()> {
        for at in 0..self.servers.len() {
            let Some(mut server) = self.servers[at].take() else {
                continue;
            };
            let pid = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            let status = server.child.wait()?;
            ensure!(
                status.success(),
                "the server ended with {status} after SIGTERM; see {}",
                self.log(&server_name(at)).display()
            );
        }
        Ok(())
    }

    /// Compares every user's total with the expected one.
    fn compare(&mut self) -> anyhow::Result<Vec<String>> {
        let database = match &self.database {
            Some(url) => parse(url)?,
            None => Database::in_dir(&self.data_dir(0)),
        };
        let readers = Readers::of(&database, 1);
        let mut faults = Vec::new();
        let mut left = self.expected.clone();
        let mut cursor = None;
        loop {
            let page = readers
                .users(&Listing {
                    cursor: cursor.as_deref(),
                    ..Listing::first(Order::UserId, 1000)
                })?
                .context("our own cursor")?;
            for user in page.users {
                let (micros, events) = left.remove(&user.user_id).unwrap_or_default();
                if (user.revenue, user.events) != (Micros::from(micros), events) {
                    faults.push(format!(
                        "{}: {} from {} events, should be {} from {events}",
                        user.user_id,
                        user.revenue,
                        user.events,
                        Micros::from(micros)
                    ));
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        faults.extend(left.into_keys().map(|user| format!("{user}: missing")));
        Ok(faults)
    }

    fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.join(match at {
            0 => "data".to_owned(),
            at => format!("data-{}", at + 1),
        })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// A command of this program whose output is appended to `name`'s log.
    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let path = self.log(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(&self.exe);
        // Not as an argument, which other users could read.
        match &self.database {
            Some(url) => command.env("TALLYLINE_DATABASE", url),
            None => command.env_remove("TALLYLINE_DATABASE"),
        };
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

/// Kills the processes that still run.
impl Drop for Torture {
    fn drop(&mut self) {
        let senders = self
            .senders
            .iter_mut()
            .filter_map(|sender| sender.running.as_mut());
        for child in self
            .servers
            .iter_mut()
            .flatten()
            .map(|server| &mut server.child)
            .chain(self.reader.as_mut())
            .chain(senders)
        {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Tally {
    fn in_short(&self) -> String {
        format!(
            "{} kills, {} events",
            self.server_kills + self.sender_kills,
            self.events
        )
    }

    fn table(&self, seed: u64, rounds: u32, proof: Duration, faults: &[String]) -> String {
        let rows = [
            ("seed", seed.to_string()),
            ("rounds", rounds.to_string()),
            ("kill -9 of the server", self.server_kills.to_string()),
            ("kill -9 of a sender", self.sender_kills.to_string()),
            ("starts of the server", self.starts.to_string()),
            (
                "slowest start",
                format!("{} ms", self.slowest_start.as_millis()),
            ),
            ("torn tails kept", self.torn_tails.to_string()),
            ("reads by other processes", self.reads.to_string()),
            ("backups restored", self.restores.to_string()),
            ("files sent", self.files.to_string()),
            ("events, each to count once", self.events.to_string()),
            ("... sent twice on purpose", self.overlapping.to_string()),
            ("proof took", format!("{:.1} s", proof.as_secs_f64())),
            ("faults", faults.len().to_string()),
        ];
        let mut table = String::new();
        for (name, value) in rows {
            let _infallible = writeln!(table, "{name:<28}{value:>16}");
        }
        for fault in faults.iter().take(20) {
            let _infallible = writeln!(table, "FAULT {fault}");
        }
        table.push_str(if faults.is_empty() {
            "Every acknowledged event is counted once, in the files and in the database.\n"
        } else {
            "FAILED: the totals do not match the events; keep the directory and report it.\n"
        });
        table
    }
}
