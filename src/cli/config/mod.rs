//! The configuration of each command: built from the flags and fully checked.
//!
//! Apart from clap, which reads the flags' environment variables, this is the only module that reads
//! the environment and the config file. Nothing here logs, prints or exits; invalid settings are a
//! [`UsageError`].

mod checks;
mod ready;
mod send;
mod serve;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use self::checks::{directory, is_loopback};
pub use self::ready::ReadyConfig;
pub use self::send::{Ids, Input, Repeat, Report, SendConfig, Token};
pub use self::serve::{Effective, ServeConfig};
use crate::cli::args::{
    BackupArgs, DemoArgs, ProcessArgs, QueryArgs, RejectedArgs, RestoreArgs, ServeArgs,
    TortureArgs, VerifyArgs,
};
use crate::cli::memory::default_bytes;
use crate::cli::{Size, Span};
use crate::data_dir::NODE_FILE;
use crate::data_dir::node_position::NodePosition;
pub use crate::http::Access;
pub use crate::progress::Processing;
use crate::store::DATABASE_FILE;
use crate::store::Database;

/// Invalid settings: exit code 2. The message says what is wrong and what would be valid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// An error with the message `reason`.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// The database of `--database`.
fn database_url(url: Option<String>) -> Result<Option<Database>, UsageError> {
    let parsed = url.map(|url| Database::parse(&url)).transpose();
    parsed.map_err(|reason| UsageError::new(format!("--database: {reason}")))
}

/// Configuration of `tallyline demo`.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// The server. Only the address and the data directory differ from the defaults.
    pub serve: ServeConfig,
    /// What to do after showing the totals.
    pub then: AfterDemo,
    /// Whether the directory is the default one or named by the user.
    pub dir: DemoDir,
}

/// What `demo` does after showing the totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDemo {
    /// Serve until a signal.
    Serve,
    /// Stop and exit 0.
    Exit,
}

/// The data directory of a demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoDir {
    /// `data/demo`, the default; emptied at each start.
    Own,
    /// Named by the user: must be new, empty or from an earlier demo, else exit code 2.
    Named,
}

impl DemoConfig {
    /// Checks the flags. A demo has no tokens, so it listens on loopback only.
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
                "the demo listens on loopback only, not on {}; to serve other machines, use `tallyline serve` with --token-file",
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

/// Configuration of `tallyline process`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Data directory; created if missing. Default `data`.
    pub data_dir: PathBuf,
    /// Files to import first. If empty, only the files of the data directory are applied.
    pub files: Vec<PathBuf>,
    /// The database of `--database`; `None`: the file `revenue.db` in the data directory.
    pub database_url: Option<Database>,
    /// Whether to keep the database or build a new one.
    pub database: DatabaseMode,
    /// Maximum memory of the processor in bytes: as [`ServeConfig::memory_bytes`].
    pub memory_bytes: u64,
    /// Whether to print a summary on success.
    pub verbosity: Verbosity,
}

/// How much a command prints to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// A summary, also if nothing is wrong.
    Normal,
    /// `--quiet`: nothing on success.
    Quiet,
}

impl Verbosity {
    fn of(quiet: bool) -> Self {
        if quiet { Self::Quiet } else { Self::Normal }
    }
}

/// What `process` does with an existing database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseMode {
    /// Keeps it and applies what is not applied yet.
    Keep,
    /// `--rebuild`: builds a new one from all files.
    Rebuild,
}

impl ProcessConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: ProcessArgs, quiet: bool) -> Result<Self, UsageError> {
        if args.rebuild && !args.files.is_empty() {
            return Err(UsageError::new(
                "--rebuild builds a new database from all files in the data directory; to add other files, run `tallyline process FILE` first",
            ));
        }
        let memory = args.memory.unwrap_or_else(|| Size(default_bytes()));
        Ok(Self {
            data_dir: directory(args.data_dir)?,
            files: args.files,
            database_url: database_url(args.database)?,
            database: if args.rebuild {
                DatabaseMode::Rebuild
            } else {
                DatabaseMode::Keep
            },
            memory_bytes: serve::memory_bytes(memory)?,
            verbosity: Verbosity::of(quiet),
        })
    }
}

/// Configuration of `tallyline verify`.
#[derive(Clone, Debug)]
pub struct VerifyConfig {
    /// Data directory. Default `data`.
    pub data_dir: PathBuf,
    /// The database of `--database`; `None`: the file `revenue.db` in the data directory.
    pub database_url: Option<Database>,
    /// Whether to print a summary if files and database agree.
    pub verbosity: Verbosity,
}

impl VerifyConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: VerifyArgs, quiet: bool) -> Result<Self, UsageError> {
        Ok(Self {
            data_dir: directory(args.totals.data_dir)?,
            database_url: database_url(args.totals.database)?,
            verbosity: Verbosity::of(quiet),
        })
    }
}

/// Configuration of `tallyline backup`.
#[derive(Clone, Debug)]
pub struct BackupConfig {
    /// The backup directory to create.
    pub dir: PathBuf,
    /// Data directory to copy. Default `data`.
    pub data_dir: PathBuf,
    /// Whether to recount the finished backup.
    pub check: CheckBackup,
    /// Whether to print a summary on success.
    pub verbosity: Verbosity,
}

/// Whether a finished backup is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckBackup {
    /// The files are copied without a check.
    No,
    /// Recounts the backup, as `verify` does.
    Recount,
}

impl BackupConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: BackupArgs, quiet: bool) -> Result<Self, UsageError> {
        let data_dir = directory(args.data_dir)?;
        if let Some(why) = keeps_totals_elsewhere(&data_dir, args.database.url)? {
            return Err(UsageError::new(format!(
                "cannot back up {}: {why}, and a backup has no copy of it; run rsync -a, pg_dump and rsync -a again, in this order, because the files must not be older than the dump: see Backup in data/docs/scaling.md",
                data_dir.display()
            )));
        }
        Ok(Self {
            dir: args.dir,
            data_dir,
            check: if args.verify {
                CheckBackup::Recount
            } else {
                CheckBackup::No
            },
            verbosity: Verbosity::of(quiet),
        })
    }
}

/// Configuration of `tallyline restore`.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// The directory of the backup.
    pub dir: PathBuf,
    /// Data directory to restore into. Default `data`.
    pub data_dir: PathBuf,
    /// Whether to print a summary on success.
    pub verbosity: Verbosity,
}

impl RestoreConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: RestoreArgs, quiet: bool) -> Result<Self, UsageError> {
        let data_dir = directory(args.data_dir)?;
        if let Some(why) = keeps_totals_elsewhere(&data_dir, args.database.url)? {
            return Err(UsageError::new(format!(
                "cannot restore into {}: {why}, which a backup cannot replace; restore the dump with psql or pg_restore, and copy the files of the data directory: see Backup in data/docs/scaling.md",
                data_dir.display()
            )));
        }
        Ok(Self {
            dir: args.dir,
            data_dir,
            verbosity: Verbosity::of(quiet),
        })
    }
}

/// Configuration of `tallyline query`.
#[derive(Clone, Debug)]
pub struct QueryConfig {
    /// Data directory. Default `data`.
    pub data_dir: PathBuf,
    /// The database of `--database`; `None`: the file `revenue.db` in the data directory.
    pub database_url: Option<Database>,
    /// Users to show, in this order. If empty, the overall totals and the top users are shown.
    pub users: Vec<String>,
    /// Number of users to show if `users` is empty. Default 20, minimum 0.
    pub top: u32,
    /// Output format. Default table.
    pub format: QueryFormat,
}

/// Output format of `query`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryFormat {
    /// Aligned columns, for people.
    Table,
    /// JSON; amounts keep all their digits.
    Json,
    /// CSV with a header row.
    Csv,
}

impl QueryFormat {
    fn of(json: bool, csv: bool) -> Self {
        match (json, csv) {
            (true, _) => Self::Json,
            (_, true) => Self::Csv,
            _ => Self::Table,
        }
    }
}

impl QueryConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: QueryArgs) -> Result<Self, UsageError> {
        Ok(Self {
            data_dir: directory(args.totals.data_dir)?,
            database_url: database_url(args.totals.database)?,
            users: args.users,
            top: args.top,
            format: QueryFormat::of(args.json, args.csv),
        })
    }
}

/// Configuration of `tallyline rejected`.
#[derive(Clone, Debug)]
pub struct RejectedConfig {
    /// Data directory. Default `data`.
    pub data_dir: PathBuf,
    /// The database of `--database`; `None`: the file `revenue.db` in the data directory.
    pub database_url: Option<Database>,
    /// Maximum number of lines to show, newest first. Default 20, minimum 1.
    pub limit: NonZeroU32,
    /// Only lines of native segments, at or after this position. `None`: all.
    pub since: Option<NodePosition>,
    /// Only events whose id begins with this text. `None`: all.
    pub id_prefix: Option<String>,
    /// Output format. Default table.
    pub format: QueryFormat,
}

impl RejectedConfig {
    /// The configuration of these flags. An error names the flag that is wrong.
    pub fn new(args: RejectedArgs) -> Result<Self, UsageError> {
        Ok(Self {
            data_dir: directory(args.totals.data_dir)?,
            database_url: database_url(args.totals.database)?,
            limit: args.limit,
            since: args.since,
            id_prefix: args.id_prefix,
            format: QueryFormat::of(args.json, args.csv),
        })
    }
}

/// Configuration of `tallyline torture`.
#[derive(Clone, Debug)]
pub struct TortureConfig {
    /// Directory of the run; must be new or empty. `None`: a temporary directory.
    pub dir: Option<PathBuf>,
    /// The URL of an empty PostgreSQL database that two servers share; `None`: one server with SQLite.
    pub database: Option<String>,
    /// Number of times to kill and restart the server. Default 20, minimum 1.
    pub rounds: NonZeroU32,
    /// Seed of the random moments. `None`: from the clock.
    pub seed: Option<u64>,
}

impl From<TortureArgs> for TortureConfig {
    fn from(args: TortureArgs) -> Self {
        Self {
            dir: args.dir,
            database: args.database,
            rounds: args.rounds,
            seed: args.seed,
        }
    }
}

/// Why the totals of a data directory are not in its `revenue.db`; `None` if they are, or if it has none yet.
fn keeps_totals_elsewhere(
    data_dir: &Path,
    database: Option<String>,
) -> Result<Option<String>, UsageError> {
    if let Some(database) = database_url(database)? {
        return Ok(Some(format!(
            "with --database, the totals are in {database}"
        )));
    }
    if data_dir.join(NODE_FILE).exists() && !data_dir.join(DATABASE_FILE).exists() {
        return Ok(Some(format!(
            "it has {NODE_FILE} and no {DATABASE_FILE}, so its totals are in a PostgreSQL database"
        )));
    }
    Ok(None)
}
