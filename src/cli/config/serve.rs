//! Configuration of `tallyline serve`: flags, then environment, then config file, then defaults.

mod settings;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use uuid::Uuid;

use self::settings::{DatabaseText, Settings};
use super::checks::{address, at_least, between, directory, host_name, is_loopback, within};
use super::{Size, Span, UsageError};
use crate::cli::args::{ServeArgs, renamed};
use crate::cli::memory::default_bytes;
use crate::http::Access;
use crate::progress::Processing;
use crate::store::Database;

/// Minimum interval of rotation and flushing. Shorter ones would keep the disk busy.
const PERIOD_MIN: Duration = Duration::from_millis(10);
/// Maximum flush interval. `--no-process` turns applying off.
const FLUSH_EVERY_MAX: Duration = Duration::from_hours(24);
/// Longer than the 60 s for which nginx and AWS load balancers keep connections to a server.
const KEEP_ALIVE_DEFAULT: Duration = Duration::from_secs(75);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Configuration of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Address to listen on; port 0 picks a free port. Default `127.0.0.1:8000`. An address beyond
    /// loopback requires [`Access::TokenFile`] or [`Access::Anyone`].
    pub listen: SocketAddr,
    /// Host name given in place of an address; accepted in `Host`. Default none.
    pub listen_name: Option<String>,
    /// Access control. Default: open, on loopback only.
    pub access: Access,
    /// File that receives the port number when the server is ready for requests. Default none.
    pub port_file: Option<PathBuf>,
    /// Maximum size of a request body in bytes, raw and decompressed. Default 8 MiB, 1 KiB to 1 GiB.
    pub max_body_bytes: u64,
    /// An idle connection is closed after this time. Default 75 s, 1 s to 1 h. It must exceed the
    /// timeout of a reverse proxy, which could otherwise send a request to a connection being closed.
    pub keep_alive: Duration,
    /// Data directory; created if missing. Default `data`.
    pub data_dir: PathBuf,
    /// UUID that `directory.json` must contain, or the server does not start. `None`: any.
    pub expect_id: Option<Uuid>,
    /// The active file is sealed this long after its first line; `None`: not by age. Default 1 min,
    /// minimum 10 ms.
    pub rotate_interval: Option<Duration>,
    /// The active file is sealed at this size in bytes. Default 256 MiB, 1 KiB to 1 TiB.
    pub rotate_size: u64,
    /// Maximum size of the data directory in bytes; appends beyond it get status 507. Default none,
    /// minimum 64 KiB.
    pub max_disk_bytes: Option<u64>,
    /// Bytes of disk space kept free for applying and pruning. Default 64 MiB, 0 to 1 TiB.
    pub disk_reserve_bytes: u64,
    /// A segment is deleted this long after it was fully applied; `None`: never. Default never, minimum 0;
    /// with `--database`, the time of `--failover-window`.
    pub retention: Option<Duration>,
    /// Maximum delay between acknowledgement and totals; `None`: the default, 1 s. From 10 ms to
    /// 24 h.
    pub flush_interval: Option<Duration>,
    /// Deduplication window: how long the ids of events are kept after they were applied; `None`: for
    /// ever. Default for ever, minimum 0.
    pub dedup_window: Option<Duration>,
    /// Maximum memory of the processor in bytes, 32 MiB to 1 TiB. Sums that do not fit are written to
    /// temporary files in the data directory. Default an eighth of the memory of the machine, or of the
    /// limit of the control group, 64 MiB to 1 GiB.
    pub memory_bytes: u64,
    /// The database of `--database`; `None`: the file `revenue.db` in the data directory.
    pub database_url: Option<Database>,
    /// Which process applies events. Default this one.
    pub processing: Processing,
}

/// The configuration and the source of each setting; shown as TOML that `--config` accepts.
#[derive(Clone, Debug)]
pub struct Effective {
    /// What the server uses: flags, environment, file and defaults.
    pub config: ServeConfig,
    text: String,
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The config file. Its TOML keys are the flags' names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[expect(clippy::struct_field_names, reason = "the names are the flags'")]
struct File {
    listen: Option<String>,
    token_file: Option<PathBuf>,
    no_auth: Option<bool>,
    port_file: Option<PathBuf>,
    max_body: Option<Size>,
    keep_alive: Option<Span>,
    data_dir: Option<PathBuf>,
    expect_id: Option<Uuid>,
    rotate_interval: Option<Span>,
    rotate_size: Option<Size>,
    max_disk: Option<Size>,
    disk_reserve: Option<Size>,
    retention: Option<Span>,
    failover_window: Option<Span>,
    database: Option<String>,
    flush_interval: Option<Span>,
    dedup_window: Option<Span>,
    memory: Option<Size>,
    no_process: Option<bool>,
}

impl ServeConfig {
    /// A server for tests: this data directory, a free port on 127.0.0.1, no tokens, and defaults
    /// otherwise. The fields can be changed.
    ///
    /// Reads no environment variable and no file.
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            listen_name: None,
            access: Access::Loopback,
            port_file: None,
            max_body_bytes: 8 * MIB,
            keep_alive: KEEP_ALIVE_DEFAULT,
            data_dir: data_dir.into(),
            expect_id: None,
            rotate_interval: Some(Duration::from_mins(1)),
            rotate_size: 256 * MIB,
            max_disk_bytes: None,
            disk_reserve_bytes: 64 * MIB,
            retention: None,
            flush_interval: Some(Duration::from_secs(1)),
            dedup_window: None,
            memory_bytes: default_bytes(),
            database_url: None,
            processing: Processing::Here,
        }
    }

    /// The database of `--database`, or the SQLite file in the data directory.
    pub fn database(&self) -> Database {
        self.database_url
            .clone()
            .unwrap_or_else(|| Database::in_dir(&self.data_dir))
    }

    /// The port file named by the flags or the config file, even if other settings are invalid.
    /// `None` if there is none, or if the config file cannot be read or parsed.
    pub fn port_file_of(args: &ServeArgs) -> Option<PathBuf> {
        let in_file = || {
            let text = crate::data_dir::disk::read_to_string(args.config.as_ref()?).ok()?;
            let table: toml::Table = text.parse().ok()?;
            Some(PathBuf::from(table.get("port-file")?.as_str()?))
        };
        args.port_file.clone().or_else(in_file)
    }

    /// Merges flags and environment variables, the config file of `--config`, and defaults.
    pub fn from_args(args: ServeArgs) -> Result<Effective, UsageError> {
        match args.config.clone() {
            None => Self::effective(args, None),
            Some(path) => {
                let text = crate::data_dir::disk::read_to_string(&path).map_err(|error| {
                    UsageError::new(format!(
                        "cannot read the config file {}: {error}; name a readable file with --config",
                        path.display()
                    ))
                })?;
                Self::effective(args, Some((&path, &text)))
            }
        }
    }

    /// As [`Self::from_args`], with the path and the text of the config file.
    pub(super) fn effective(
        args: ServeArgs,
        file: Option<(&Path, &str)>,
    ) -> Result<Effective, UsageError> {
        let settings_file = match file {
            None => File::default(),
            Some((path, text)) => File::parse(path, text)?,
        };
        let mut settings = Settings::default();
        let picked = Picked::of(args, settings_file, &mut settings);
        let config = picked.checked().map_err(|error| match file {
            None => error,
            Some((path, _)) => settings.named_as_in(path, &error),
        })?;
        Ok(Effective {
            config,
            text: settings.text,
        })
    }
}

impl File {
    /// Parses a config file. An error has the line, and the current name of a renamed setting.
    fn parse(path: &Path, text: &str) -> Result<Self, UsageError> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let span = error.span().unwrap_or_default();
            let line = 1 + text
                .get(..span.start)
                .map_or(0, |before| before.matches('\n').count());
            let hint = text.get(span).and_then(renamed);
            let hint = hint.map_or(String::new(), |key| format!("; did you mean `{key}`?"));
            UsageError::new(format!(
                "cannot read the config file {}: line {line}: {}{hint}",
                path.display(),
                error.message().trim_end()
            ))
        })
    }
}

/// The settings after the merge, not checked yet.
struct Picked {
    listen: String,
    token_file: Option<PathBuf>,
    no_auth: bool,
    port_file: Option<PathBuf>,
    max_body: Size,
    keep_alive: Span,
    data_dir: PathBuf,
    expect_id: Option<Uuid>,
    rotate_interval: Span,
    rotate_size: Size,
    max_disk: Option<Size>,
    disk_reserve: Size,
    retention: Span,
    failover_window: Span,
    database: Option<DatabaseText>,
    flush_interval: Span,
    dedup_window: Span,
    memory: Size,
    no_process: bool,
}

impl Picked {
    /// Picks each setting: from the flags and environment, else from the file, else the default.
    fn of(args: ServeArgs, file: File, s: &mut Settings) -> Self {
        macro_rules! pick {
            ($name:literal, $field:ident) => {
                s.pick_optional($name, args.$field, file.$field)
            };
            ($name:literal, $field:ident, $default:expr) => {
                s.pick($name, args.$field, file.$field, $default)
            };
        }
        let (second, hour) = (Duration::from_secs(1), Duration::from_hours(1));
        Self {
            listen: pick!("listen", listen, "127.0.0.1:8000".into()),
            token_file: pick!("token-file", token_file),
            no_auth: pick!("no-auth", no_auth, false),
            port_file: pick!("port-file", port_file),
            max_body: pick!("max-body", max_body, Size(8 * MIB)),
            keep_alive: pick!("keep-alive", keep_alive, Span(Some(KEEP_ALIVE_DEFAULT))),
            data_dir: pick!("data-dir", data_dir, "data".into()),
            expect_id: pick!("expect-id", expect_id),
            rotate_interval: pick!("rotate-interval", rotate_interval, Span(Some(60 * second))),
            rotate_size: pick!("rotate-size", rotate_size, Size(256 * MIB)),
            max_disk: pick!("max-disk", max_disk),
            disk_reserve: pick!("disk-reserve", disk_reserve, Size(64 * MIB)),
            retention: pick!("retention", retention, Span(None)),
            failover_window: pick!("failover-window", failover_window, Span(Some(hour))),
            database: s.pick_optional(
                "database",
                args.database.map(DatabaseText),
                file.database.map(DatabaseText),
            ),
            flush_interval: pick!("flush-interval", flush_interval, Span(Some(second))),
            dedup_window: pick!("dedup-window", dedup_window, Span(None)),
            memory: pick!("memory", memory, Size(default_bytes())),
            no_process: pick!("no-process", no_process, false),
        }
    }

    /// Checks the settings, alone and against each other.
    fn checked(self) -> Result<ServeConfig, UsageError> {
        let listen = address("--listen", &self.listen)?;
        let max_disk = self
            .max_disk
            .map(|size| within("--max-disk", size, 64 * KIB, u64::MAX));
        let flush_interval = between(
            "--flush-interval",
            self.flush_interval,
            PERIOD_MIN,
            FLUSH_EVERY_MAX,
        );
        if self.database.is_some() {
            outlives_failover(self.retention, self.failover_window)?;
        }
        Ok(ServeConfig {
            listen,
            listen_name: host_name(&self.listen),
            access: access(listen, self.token_file, self.no_auth)?,
            port_file: self.port_file,
            max_body_bytes: within("--max-body", self.max_body, KIB, GIB)?,
            keep_alive: keep_alive_time(self.keep_alive)?,
            data_dir: directory(self.data_dir)?,
            expect_id: self.expect_id,
            rotate_interval: at_least("--rotate-interval", self.rotate_interval, PERIOD_MIN)?,
            rotate_size: within("--rotate-size", self.rotate_size, KIB, TIB)?,
            max_disk_bytes: max_disk.transpose()?,
            disk_reserve_bytes: within("--disk-reserve", self.disk_reserve, 0, TIB)?,
            retention: self.retention.0,
            flush_interval: Some(flush_interval?),
            dedup_window: self.dedup_window.0,
            memory_bytes: memory_bytes(self.memory)?,
            database_url: super::database_url(self.database.map(|text| text.0))?,
            processing: if self.no_process {
                Processing::Elsewhere
            } else {
                Processing::Here
            },
        })
    }
}

/// The bytes of `--memory`, if they are within the bounds.
pub(super) fn memory_bytes(size: Size) -> Result<u64, UsageError> {
    within("--memory", size, 32 * MIB, TIB)
}

/// Files must be kept until no failover can set the database back to before they were applied.
fn outlives_failover(retention: Span, window: Span) -> Result<(), UsageError> {
    let forever = Duration::MAX;
    if retention.0.unwrap_or(forever) >= window.0.unwrap_or(forever) {
        return Ok(());
    }
    Err(UsageError::new(format!(
        "--retention {retention} is shorter than --failover-window {window}: a PostgreSQL server that takes over may lack the last commits, which are applied again from the files; keep the files longer, or name the time that a failover may lose"
    )))
}

/// The time of `--keep-alive`, if it is within the bounds.
fn keep_alive_time(span: Span) -> Result<Duration, UsageError> {
    let (min, max) = (Duration::from_secs(1), Duration::from_hours(1));
    span.0
        .filter(|time| (min..=max).contains(time))
        .ok_or_else(|| UsageError::new("--keep-alive is a duration from 1s to 1h"))
}

/// Access control for `listen`. Beyond loopback, a token file or `--no-auth` is required, so that no
/// port is opened to other machines by accident.
fn access(
    listen: SocketAddr,
    token_file: Option<PathBuf>,
    no_auth: bool,
) -> Result<Access, UsageError> {
    match (token_file, no_auth) {
        (Some(_), true) => Err(UsageError::new(
            "--token-file and --no-auth contradict each other; give one of them",
        )),
        (Some(path), false) => match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Err(UsageError::new(format!(
                "--token-file {} is a directory; name a file of tokens, one a line",
                path.display()
            ))),
            Ok(_) => Ok(Access::TokenFile(path)),
            Err(error) => Err(UsageError::new(format!(
                "--token-file {}: {error}",
                path.display()
            ))),
        },
        (None, true) => Ok(Access::Anyone),
        (None, false) if is_loopback(listen) => Ok(Access::Loopback),
        (None, false) => Err(UsageError::new(format!(
            "--listen {listen} can be reached from other machines, where any client could post and read; \
             give --token-file FILE (bearer tokens, one a line), or --no-auth if the network is trusted, \
             or listen on 127.0.0.1"
        ))),
    }
}
