//! What each command is to do: built from the flags, checked, and nothing left to decide.
//!
//! This is the only place that reads the environment (beside clap, for the flags' variables) and
//! the config file. Nothing here logs, prints or exits; what cannot be is a [`UsageError`].

mod send;
mod serve;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

pub use self::send::{Ids, Input, Repeat, Report, SendConfig, Token};
pub use self::serve::{Access, Effective, Processing, ServeConfig};
use crate::cli::args::{
    BackupArgs, DemoArgs, ProcessArgs, QueryArgs, RestoreArgs, ServeArgs, TortureArgs, VerifyArgs,
};
use crate::cli::{Size, Span};
use crate::http;

/// What was asked for can't be: exit code 2, with what to ask for instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// `reason` says what is wrong and what would be right.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// `tallyline demo`.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// The server: everything at its default but the address and the directory.
    pub serve: ServeConfig,
    /// What to do once the totals are shown.
    pub then: AfterDemo,
    /// Whose directory it is.
    pub dir: DemoDir,
}

/// What `demo` does once the totals are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDemo {
    /// Go on serving until a signal.
    Serve,
    /// Stop and exit 0.
    Exit,
}

/// The directory of a demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoDir {
    /// `data/demo`, the demo's own: emptied at each start.
    Own,
    /// Named by the user: must be new, empty or a former demo's, else exit code 2.
    Named,
}

impl DemoConfig {
    /// The flags, checked. A demo has no tokens, so it stays on loopback.
    pub fn new(args: DemoArgs) -> Result<Self, UsageError> {
        let dir = match args.data_dir {
            None => DemoDir::Own,
            Some(_) => DemoDir::Named,
        };
        let data_dir = args.data_dir.unwrap_or_else(|| "data/demo".into());
        let serve = ServeArgs {
            listen: Some(args.listen),
            data_dir: Some(data_dir),
            ..ServeArgs::default()
        };
        let serve = ServeConfig::effective(serve, None)?.config;
        if !is_loopback(serve.listen) {
            return Err(UsageError::new(format!(
                "the demo listens on loopback only, not on {}; for other machines use `tallyline serve` with --token-file",
                serve.listen
            )));
        }
        Ok(Self {
            serve,
            then: if args.exit {
                AfterDemo::Exit
            } else {
                AfterDemo::Serve
            },
            dir,
        })
    }
}

/// `tallyline process`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Where events and totals are kept; created if missing. Default `data`.
    pub data_dir: PathBuf,
    /// Files from elsewhere to copy in first; none: apply what is there.
    pub files: Vec<PathBuf>,
    /// Keep the database, or make it anew.
    pub database: DatabaseMode,
    /// Bytes for totals on their way to the database: as [`ServeConfig::memory_bytes`].
    pub memory_bytes: u64,
    /// Whether a run in which all went well says so.
    pub say: Say,
}

/// How much a command says on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// What was done.
    All,
    /// `--quiet`: nothing, where all went well.
    Trouble,
}

impl Say {
    fn of(quiet: bool) -> Self {
        if quiet { Self::Trouble } else { Self::All }
    }
}

/// What `process` does with the database that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseMode {
    /// Apply to it what is not applied yet.
    Keep,
    /// `--rebuild`: make a new one from all kept files.
    Rebuild,
}

impl ProcessConfig {
    /// The flags, checked.
    pub fn new(args: ProcessArgs, quiet: bool) -> Result<Self, UsageError> {
        if args.rebuild && !args.files.is_empty() {
            return Err(UsageError::new(
                "--rebuild makes a new database from all files in the data directory; bring other files in first, by `tallyline process FILE`",
            ));
        }
        Ok(Self {
            data_dir: args.data_dir,
            files: args.files,
            database: if args.rebuild {
                DatabaseMode::Rebuild
            } else {
                DatabaseMode::Keep
            },
            memory_bytes: serve::memory_bytes(args.memory)?,
            say: Say::of(quiet),
        })
    }
}

/// `tallyline verify`.
#[derive(Clone, Debug)]
pub struct VerifyConfig {
    /// Where events and totals are kept. Default `data`.
    pub data_dir: PathBuf,
    /// Whether agreement is worth a word.
    pub say: Say,
}

impl VerifyConfig {
    /// The flags.
    pub fn new(args: VerifyArgs, quiet: bool) -> Self {
        Self {
            data_dir: args.data_dir,
            say: Say::of(quiet),
        }
    }
}

/// `tallyline backup`.
#[derive(Clone, Debug)]
pub struct BackupConfig {
    /// The backup to create.
    pub dir: PathBuf,
    /// What is copied. Default `data`.
    pub data_dir: PathBuf,
    /// Whether to recount the finished backup.
    pub check: CheckBackup,
    /// Whether a backup in which all went well says so.
    pub say: Say,
}

/// What is done with a finished backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckBackup {
    /// Nothing.
    No,
    /// It is recounted, as by `verify`.
    Recount,
}

impl BackupConfig {
    /// The flags.
    pub fn new(args: BackupArgs, quiet: bool) -> Self {
        Self {
            dir: args.dir,
            data_dir: args.data_dir,
            check: if args.verify {
                CheckBackup::Recount
            } else {
                CheckBackup::No
            },
            say: Say::of(quiet),
        }
    }
}

/// `tallyline restore`.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// The backup.
    pub dir: PathBuf,
    /// Where it is restored. Default `data`.
    pub data_dir: PathBuf,
    /// Whether a restore in which all went well says so.
    pub say: Say,
}

impl RestoreConfig {
    /// The flags.
    pub fn new(args: RestoreArgs, quiet: bool) -> Self {
        Self {
            dir: args.dir,
            data_dir: args.data_dir,
            say: Say::of(quiet),
        }
    }
}

/// `tallyline query`.
#[derive(Clone, Debug)]
pub struct QueryConfig {
    /// Where events and totals are kept. Default `data`.
    pub data_dir: PathBuf,
    /// Whose totals, in this order; none: all in all and the top.
    pub users: Vec<String>,
    /// How many users to show without `users`. Default 20, minimum 0.
    pub top: u32,
    /// How to show them. Default table.
    pub format: QueryFormat,
}

/// The form of `query`'s answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryFormat {
    /// Aligned columns for people.
    Table,
    /// JSON, amounts exact.
    Json,
    /// CSV with a heading.
    Csv,
}

impl From<QueryArgs> for QueryConfig {
    fn from(args: QueryArgs) -> Self {
        let format = match (args.json, args.csv) {
            (true, _) => QueryFormat::Json,
            (_, true) => QueryFormat::Csv,
            _ => QueryFormat::Table,
        };
        Self {
            data_dir: args.data_dir,
            users: args.users,
            top: args.top,
            format,
        }
    }
}

/// `tallyline torture`.
#[derive(Clone, Debug)]
pub struct TortureConfig {
    /// Must be new or empty; `None`: a temporary one.
    pub dir: Option<PathBuf>,
    /// How many times to kill and restart. Default 20, minimum 1.
    pub rounds: NonZeroU32,
    /// What the random moments are drawn from; `None`: the clock.
    pub seed: Option<u64>,
}

impl From<TortureArgs> for TortureConfig {
    fn from(args: TortureArgs) -> Self {
        Self {
            dir: args.dir,
            rounds: args.rounds,
            seed: args.seed,
        }
    }
}

/// `value` if it lies within the bounds.
fn within(name: &str, value: Size, min: u64, max: u64) -> Result<u64, UsageError> {
    if (min..=max).contains(&value.0) {
        return Ok(value.0);
    }
    let (min, max) = (Size(min), Size(max));
    Err(UsageError::new(format!(
        "{name} {value} is out of range: from {min} to {max}"
    )))
}

/// `value` if it is no shorter than `min`; forever is longer than anything.
fn at_least(name: &str, value: Span, min: Duration) -> Result<Option<Duration>, UsageError> {
    match value.0 {
        Some(duration) if duration < min => {
            let min = Span(Some(min));
            Err(UsageError::new(format!(
                "{name} {value} is too short: {min} or more, or forever"
            )))
        }
        span => Ok(span),
    }
}

/// `127.0.0.1:8000`, `[::1]:8000` or `localhost:8000`.
fn address(name: &str, text: &str) -> Result<SocketAddr, UsageError> {
    let wrong = |why: String| {
        UsageError::new(format!(
            "{name} {text:?}: {why}; write an address and a port, such as 127.0.0.1:8000 or [::1]:0"
        ))
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    text.to_socket_addrs()
        .map_err(|error| wrong(error.to_string()))?
        .next()
        .ok_or_else(|| wrong("no such address".to_owned()))
}

/// Whether only this machine can reach it.
fn is_loopback(address: SocketAddr) -> bool {
    http::is_loopback(address.ip())
}

/// The host of `edge-7:8000`, which is a name; `None` for an address.
fn host_name(text: &str) -> Option<String> {
    let (name, _) = text.rsplit_once(':')?;
    text.parse::<SocketAddr>().is_err().then(|| name.to_owned())
}

/// `value` if it is from `min` to `max`.
fn between(name: &str, value: Span, min: Duration, max: Duration) -> Result<Duration, UsageError> {
    match value.0 {
        Some(duration) if (min..=max).contains(&duration) => Ok(duration),
        _ => {
            let (min, max) = (Span(Some(min)), Span(Some(max)));
            Err(UsageError::new(format!(
                "{name} {value} is out of range: from {min} to {max}"
            )))
        }
    }
}
