//! Configuration of `tallyline serve`: flags, then environment, then config file, then defaults.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Size, Span, UsageError, address, at_least, between, host_name, is_loopback, within};
use uuid::Uuid;

use crate::cli::args::{ServeArgs, renamed};
use crate::cli::memory::default_bytes;

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
    /// loopback requires [`Access::Tokens`] or [`Access::OpenBeyondLoopback`].
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
    /// A segment is deleted this long after it was fully applied; `None`: never. Default never,
    /// minimum 0.
    pub retention: Option<Duration>,
    /// Maximum delay between acknowledgement and totals; `None`: the default, 1 s. From 10 ms to
    /// 24 h.
    pub flush_interval: Option<Duration>,
    /// Deduplication window: how long the ids of events are kept after they were applied; `None`: for
    /// ever. Default for ever, minimum 0.
    pub dedup_window: Option<Duration>,
    /// Maximum memory of the processor in bytes, 32 MiB to 1 TiB. Sums that do not fit are written to
    /// temporary files in the data directory. Default an eighth of the memory of the machine, or of the
    /// limit of the control group, 64 to 512 MiB.
    pub memory_bytes: u64,
    /// Which process applies events. Default this one.
    pub processing: Processing,
}

/// Which clients can post and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every client on this machine; the address is a loopback address.
    OpenOnLoopback,
    /// `--no-auth`: every client that reaches the address.
    OpenBeyondLoopback,
    /// Clients with a bearer token of this file, one token a line.
    Tokens(PathBuf),
}

/// Which process applies events to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processing {
    /// This process, continuously.
    Here,
    /// `--no-process`: a later `tallyline process`.
    Elsewhere,
}

/// The configuration and the source of each setting; shown as TOML that `--config` accepts.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The effective configuration.
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
            access: Access::OpenOnLoopback,
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
            processing: Processing::Here,
        }
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
                    UsageError::new(format!("--config {}: {error}", path.display()))
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
        let file = match file {
            None => File::default(),
            Some((path, text)) => toml::from_str(text).map_err(|error: toml::de::Error| {
                let key = error.span().and_then(|span| renamed(text.get(span)?));
                let hint = key.map_or(String::new(), |key| format!("did you mean `{key}`?\n"));
                UsageError::new(format!("--config {}: {error}{hint}", path.display()))
            })?,
        };
        let second = Duration::from_secs(1);
        let mut s = Settings::default();
        let listen = s.pick("listen", args.listen, file.listen, "127.0.0.1:8000".into());
        let token_file = s.pick_optional("token-file", args.token_file, file.token_file);
        let no_auth = s.pick("no-auth", args.no_auth, file.no_auth, false);
        let port_file = s.pick_optional("port-file", args.port_file, file.port_file);
        let max_body = s.pick("max-body", args.max_body, file.max_body, Size(8 * MIB));
        let keep_alive = s.pick(
            "keep-alive",
            args.keep_alive,
            file.keep_alive,
            Span(Some(KEEP_ALIVE_DEFAULT)),
        );
        let data_dir = s.pick("data-dir", args.data_dir, file.data_dir, "data".into());
        let expect_id = s.pick_optional("expect-id", args.expect_id, file.expect_id);
        let rotate_interval = s.pick(
            "rotate-interval",
            args.rotate_interval,
            file.rotate_interval,
            Span(Some(60 * second)),
        );
        let rotate_size = s.pick(
            "rotate-size",
            args.rotate_size,
            file.rotate_size,
            Size(256 * MIB),
        );
        let max_disk = s.pick_optional("max-disk", args.max_disk, file.max_disk);
        let disk_reserve = s.pick(
            "disk-reserve",
            args.disk_reserve,
            file.disk_reserve,
            Size(64 * MIB),
        );
        let retention = s.pick("retention", args.retention, file.retention, Span(None));
        let flush_interval = s.pick(
            "flush-interval",
            args.flush_interval,
            file.flush_interval,
            Span(Some(second)),
        );
        let dedup_window = s.pick(
            "dedup-window",
            args.dedup_window,
            file.dedup_window,
            Span(None),
        );
        let memory = s.pick("memory", args.memory, file.memory, Size(default_bytes()));
        let no_process = s.pick("no-process", args.no_process, file.no_process, false);

        let listen_name = host_name(&listen);
        let listen = address("--listen", &listen)?;
        let config = Self {
            listen,
            listen_name,
            access: access(listen, token_file, no_auth)?,
            port_file,
            max_body_bytes: within("--max-body", max_body, KIB, GIB)?,
            keep_alive: keep_alive_time(keep_alive)?,
            data_dir,
            expect_id,
            rotate_interval: at_least("--rotate-interval", rotate_interval, PERIOD_MIN)?,
            rotate_size: within("--rotate-size", rotate_size, KIB, TIB)?,
            max_disk_bytes: max_disk
                .map(|size| within("--max-disk", size, 64 * KIB, u64::MAX))
                .transpose()?,
            disk_reserve_bytes: within("--disk-reserve", disk_reserve, 0, TIB)?,
            retention: retention.0,
            flush_interval: Some(between(
                "--flush-interval",
                flush_interval,
                PERIOD_MIN,
                FLUSH_EVERY_MAX,
            )?),
            dedup_window: dedup_window.0,
            memory_bytes: memory_bytes(memory)?,
            processing: if no_process {
                Processing::Elsewhere
            } else {
                Processing::Here
            },
        };
        Ok(Effective {
            config,
            text: s.text,
        })
    }
}

/// The bytes of `--memory`, if they are within the bounds.
pub(super) fn memory_bytes(size: Size) -> Result<u64, UsageError> {
    within("--memory", size, 32 * MIB, TIB)
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
            Ok(_) => Ok(Access::Tokens(path)),
            Err(error) => Err(UsageError::new(format!(
                "--token-file {}: {error}",
                path.display()
            ))),
        },
        (None, true) => Ok(Access::OpenBeyondLoopback),
        (None, false) if is_loopback(listen) => Ok(Access::OpenOnLoopback),
        (None, false) => Err(UsageError::new(format!(
            "--listen {listen} can be reached from other machines, where any client could post and read; \
             give --token-file FILE (bearer tokens, one a line), or --no-auth if the network is trusted, \
             or listen on 127.0.0.1"
        ))),
    }
}

/// Picks each setting and writes it, with its source, as a line of TOML.
#[derive(Default)]
struct Settings {
    text: String,
}

impl Settings {
    fn pick<T: TomlText>(&mut self, name: &str, flag: Option<T>, file: Option<T>, default: T) -> T {
        let (value, from) = match (flag, file) {
            (Some(value), _) => (value, "flag or environment"),
            (None, Some(value)) => (value, "config file"),
            (None, None) => (default, "default"),
        };
        self.line(format_args!("{name} = {}", value.toml_text()), from);
        value
    }

    fn pick_optional<T: TomlText>(
        &mut self,
        name: &str,
        flag: Option<T>,
        file: Option<T>,
    ) -> Option<T> {
        let (value, from) = match (flag, file) {
            (Some(value), _) => (value, "flag or environment"),
            (None, Some(value)) => (value, "config file"),
            (None, None) => {
                self.line(format_args!("# {name} ="), "default: none");
                return None;
            }
        };
        self.line(format_args!("{name} = {}", value.toml_text()), from);
        Some(value)
    }

    fn line(&mut self, setting: fmt::Arguments<'_>, from: &str) {
        let setting = setting.to_string();
        let _infallible = writeln!(self.text, "{setting:<36} # {from}");
    }
}

/// A value in TOML syntax.
trait TomlText {
    fn toml_text(&self) -> String;
}

impl TomlText for bool {
    fn toml_text(&self) -> String {
        self.to_string()
    }
}

impl TomlText for String {
    fn toml_text(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}

impl TomlText for Uuid {
    fn toml_text(&self) -> String {
        format!("\"{self}\"")
    }
}

impl TomlText for PathBuf {
    fn toml_text(&self) -> String {
        self.to_string_lossy().into_owned().toml_text()
    }
}

impl TomlText for Span {
    fn toml_text(&self) -> String {
        self.to_string().toml_text()
    }
}

impl TomlText for Size {
    fn toml_text(&self) -> String {
        self.to_string().toml_text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn args(flags: &[&str]) -> ServeArgs {
        let all = ["tallyline", "serve"].iter().chain(flags);
        match Cli::try_parse_from(all).expect("flags").command {
            Command::Serve(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn with_file(flags: &[&str], text: &str) -> Result<Effective, UsageError> {
        ServeConfig::effective(args(flags), Some((Path::new("t.toml"), text)))
    }

    fn config(flags: &[&str]) -> Result<ServeConfig, UsageError> {
        ServeConfig::effective(args(flags), None).map(|effective| effective.config)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "rotate-interval = \"10s\"\nrotate-size = 4096\nno-process = true\n";
        let effective = with_file(&["--rotate-interval", "2s"], file).expect("good");
        let config = &effective.config;
        assert_eq!(config.rotate_interval, Some(Duration::from_secs(2)));
        assert_eq!(config.rotate_size, 4096);
        assert_eq!(config.processing, Processing::Elsewhere);
        assert_eq!(config.flush_interval, Some(Duration::from_secs(1)));
        let off = with_file(&["--no-process=false"], file).expect("good");
        assert_eq!(off.config.processing, Processing::Here);
    }

    #[test]
    fn a_config_for_tests_differs_from_no_flags_by_the_port_only() {
        let flags = ["--listen", "127.0.0.1:0", "--data-dir", "here"];
        assert_eq!(config(&flags).expect("good"), ServeConfig::at("here"));
    }

    #[test]
    fn what_check_prints_is_a_config_file_of_the_same_meaning() {
        let flags = [
            "--rotate-size",
            "5000",
            "--dedup-window",
            "30days",
            "--data-dir",
            "a \"b\"",
        ];
        let effective = ServeConfig::effective(args(&flags), None).expect("good");
        let again = with_file(&[], &effective.to_string()).expect("own words");
        assert_eq!(again.config, effective.config);
    }

    #[test]
    fn beyond_loopback_needs_tokens_or_a_word() {
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            let error = config(&["--listen", open]).expect_err(open).to_string();
            assert!(
                error.contains("--token-file") && error.contains("--no-auth"),
                "{error}"
            );
            let config = config(&["--listen", open, "--no-auth"]).expect(open);
            assert_eq!(config.access, Access::OpenBeyondLoopback);
        }
        for closed in [
            "127.0.0.1:0",
            "127.9.9.9:0",
            "[::1]:0",
            "[::ffff:127.0.0.1]:0",
        ] {
            let config = config(&["--listen", closed]).expect(closed);
            assert_eq!(config.access, Access::OpenOnLoopback);
        }
    }

    #[test]
    fn out_of_range_is_refused_with_the_range() {
        for (flags, word) in [
            (["--rotate-interval", "9ms"], "10ms"),
            (["--flush-interval", "1ms"], "10ms"),
            (["--flush-interval", "forever"], "1day"),
            (["--flush-interval", "1000years"], "1day"),
            (["--max-body", "1"], "1KiB"),
            (["--keep-alive", "999ms"], "1s to 1h"),
            (["--keep-alive", "forever"], "1s to 1h"),
            (["--memory", "16MiB"], "32MiB"),
            (["--listen", "here"], "127.0.0.1:8000"),
            (
                ["--token-file", "/nonexistent/tokens"],
                "/nonexistent/tokens",
            ),
        ] {
            let error = config(&flags).expect_err(flags[1]).to_string();
            assert!(error.contains(flags[0]) && error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named() {
        let error = with_file(&[], "rotate-evry = \"1s\"")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("rotate-evry") && error.contains("t.toml"),
            "{error}"
        );
        let renamed = with_file(&[], "keep-ids = \"1s\"").expect_err("unknown");
        let renamed = renamed.to_string();
        assert!(
            renamed.contains("did you mean `dedup-window`?"),
            "{renamed}"
        );
    }
}
