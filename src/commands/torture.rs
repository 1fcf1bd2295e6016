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

mod figures;
mod reader;
mod senders;
mod servers;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use self::figures::Figures;
use self::reader::Reader;
use self::senders::Senders;
use self::servers::Servers;
use self::trial::Trial;
use crate::cli::config::TortureConfig;
use crate::cli::exit::Exit;
use crate::cli::output::print;
use crate::event::Micros;
use crate::store::{Database, Listing, Order, Readers};

/// Maximum time before a round kills a process.
const ROUND_MICROS_MAX: u64 = 250_000;
/// One round in so many makes a backup while the server runs, and restores it to the data directory
/// after the server was killed.
const BACKUP_EVERY: u64 = 10;
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
    let servers = if config.database.is_some() { 2 } else { 1 };
    let mut torture = Torture {
        trial: Trial {
            exe: std::env::current_exe().context("cannot tell where this program is")?,
            random: fastrand::Rng::with_seed(seed),
            database: config.database.clone(),
            figures: Figures::default(),
            dir,
        },
        servers: Servers::new(servers),
        senders: Senders::new(),
        reader: Reader::default(),
        rounds: 0,
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
        bar.set_message(torture.trial.figures.in_short());
        bar.inc(1);
    }
    bar.finish_and_clear();
    let began = Instant::now();
    let verdict = torture.prove()?;
    let table = torture
        .trial
        .figures
        .table(seed, rounds, began.elapsed(), &verdict);
    print(table.as_bytes())?;
    if verdict.is_empty() {
        return Ok(Exit::Done);
    }
    let kept = temporary.map(tempfile::TempDir::keep);
    tracing::error!(
        "the files of the failed run are in {}",
        kept.as_deref().unwrap_or(&torture.trial.dir).display()
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

fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(32)
}

struct Torture {
    trial: Trial,
    servers: Servers,
    senders: Senders,
    reader: Reader,
    rounds: u64,
}

impl Torture {
    fn round(&mut self) -> anyhow::Result<()> {
        self.rounds += 1;
        let ports = self.servers.serving(&mut self.trial)?;
        self.reader.keep_reading(&mut self.trial)?;
        for index in 0..self.senders.len() {
            self.senders.keep_sending(index, &ports, &mut self.trial)?;
        }
        let wait = Duration::from_micros(self.trial.random.u64(..ROUND_MICROS_MAX));
        std::thread::sleep(wait);
        self.reader.keep_reading(&mut self.trial)?;
        if self.rounds.is_multiple_of(BACKUP_EVERY) && self.trial.database.is_none() {
            return self.back_up_and_restore();
        }
        // Half the rounds kill the server, a quarter one sender, a quarter all processes.
        let victim = self.trial.random.u64(..4);
        if victim != 0 {
            self.servers.kill(victim == 1, &mut self.trial)?;
        }
        let one = self.trial.below(self.senders.len());
        for index in 0..self.senders.len() {
            if victim == 1 || (victim == 0 && index == one) {
                self.senders.kill(index, &mut self.trial)?;
            }
        }
        Ok(())
    }

    /// Makes a backup while everything runs, kills the server and restores the backup to the data
    /// directory. Newer files are kept, so no acknowledged event is lost.
    fn back_up_and_restore(&mut self) -> anyhow::Result<()> {
        let backup = self.trial.dir.join("backup");
        let data_dir = self.trial.data_dir(0);
        for (what, killed) in [("backup", false), ("restore", true)] {
            if killed {
                self.servers.kill(true, &mut self.trial)?;
            }
            let status = self
                .trial
                .command(what)?
                .arg(what)
                .arg(&backup)
                .arg("--data-dir")
                .arg(&data_dir)
                .status()?;
            ensure!(
                status.success(),
                "{what} ended with {status}; see {}",
                self.trial.log(what).display()
            );
        }
        self.trial.figures.restores += 1;
        fs::remove_dir_all(&backup).with_context(|| format!("cannot remove {}", backup.display()))
    }

    /// Sends the remaining files, stops the server and checks the totals. Returns the faults.
    fn prove(&mut self) -> anyhow::Result<Vec<String>> {
        let ports = self.servers.serving(&mut self.trial)?;
        self.senders.finish(&ports, &mut self.trial)?;
        self.reader.finish()?;
        self.servers.stop(&self.trial)?;
        if self.trial.database.is_some() {
            self.servers.apply_rest(&self.trial)?;
        }
        let mut faults = self.compare()?;
        for at in 0..self.servers.len() {
            let verify = self
                .trial
                .command("verify")?
                .arg("verify")
                .arg("--data-dir")
                .arg(self.trial.data_dir(at))
                .status()?;
            if !verify.success() {
                faults.push(format!(
                    "verify ends with {verify}; see {}",
                    self.trial.log("verify").display()
                ));
            }
            let quarantine = self
                .trial
                .data_dir(at)
                .join(crate::data_dir::QUARANTINE_DIR);
            self.trial.figures.torn_tails += fs::read_dir(quarantine)?.count() as u64;
        }
        Ok(faults)
    }

    /// Compares every user's total with the expected one.
    fn compare(&mut self) -> anyhow::Result<Vec<String>> {
        let database = match &self.trial.database {
            Some(url) => parse(url)?,
            None => Database::in_dir(&self.trial.data_dir(0)),
        };
        let readers = Readers::of(&database, 1);
        let mut faults = Vec::new();
        let mut left = self.senders.expected.clone();
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
}
