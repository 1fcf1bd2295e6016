//! Configuration of `tallyline send`.

mod places;

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;

use self::places::refuse_one_file_for_two;
use super::UsageError;
use crate::cli::args::SendArgs;

/// Maximum events in one request. The size of the body has its own bound.
const BATCH_MAX: u32 = 100_000;
/// Maximum concurrent requests. Each has its own thread.
const CONNECTIONS_MAX: u32 = 256;
/// Maximum length of `--source`: with a dash and the line's number, an id stays under 128 bytes.
const SOURCE_BYTES_MAX: usize = 100;

/// Configuration of `tallyline send`.
#[derive(Clone, Debug)]
pub struct SendConfig {
    /// Input. Default the file `events.jsonl`.
    pub input: Input,
    /// Base URL of the server without a slash at the end. Default `http://127.0.0.1:8000`.
    pub to: String,
    /// Bearer token, from `TALLYLINE_TOKEN` or `--token-file`. Default none. Not logged.
    pub token: Option<Token>,
    /// Maximum events per request. Default 500, 1 to 100,000.
    pub batch: NonZeroU32,
    /// Maximum concurrent requests. Default 2, 1 to 256.
    pub connections: NonZeroU32,
    /// Maximum events per second. `None`, the default: unlimited.
    pub rate: Option<NonZeroU64>,
    /// Give up if a request gets no answer for this long; `None`: never. Default 1 min.
    pub retry_for: Option<Duration>,
    /// File for refused lines, as JSON Lines. `None`, the default: only the first few are logged.
    pub rejects: Option<PathBuf>,
    /// Ids of events that have none. Default [`Ids::Run`].
    pub ids: Ids,
    /// State file of the run's name and progress; `None`: no state is kept. Default beside the input.
    pub state: Option<PathBuf>,
    /// What to do with a file that was sent in full before. Default [`Repeat::Refuse`].
    pub repeat: Repeat,
    /// Maximum time to wait, after sending, until all events are applied. `None`: no limit; zero: do
    /// not wait. Default 10 s.
    pub wait: Option<Duration>,
    /// Format of the summary.
    pub report: Report,
}

/// What to do with a file that was sent in full to the same data directory before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Sends nothing, because the events would count twice.
    Refuse,
    /// `--again`: sends all of it as a new run.
    Again,
}

/// The input of a send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Stdin, to its end.
    Stdin,
    /// A file, to its end.
    File(PathBuf),
    /// A growing file, until a signal, across its rotation.
    Follow(PathBuf),
}

impl Input {
    /// The path of the file; `None` for stdin.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdin => None,
            Self::File(path) | Self::Follow(path) => Some(path),
        }
    }
}

/// Ids of events that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Made of the run's name and the line's number. Sending a run again counts nothing twice.
    Run,
    /// Made of this name and the line's number. Any machine that sends the file makes the same ids.
    Source(String),
    /// No ids are added. Events sent again after a lost answer may count twice.
    Off,
}

/// Format of the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Lines for people.
    Text,
    /// One JSON object, for programs.
    Json,
    /// Text, printed only if something went wrong.
    Quiet,
}

/// A secret. Its `Debug` does not show it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The value of the `Authorization` header.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl SendConfig {
    /// Sends a file to `to`, with no state file and no summary; all else has its default.
    pub fn of_file(file: PathBuf, to: String) -> Self {
        Self {
            input: Input::File(file),
            to,
            token: None,
            batch: NonZeroU32::new(500).unwrap_or(NonZeroU32::MIN),
            connections: NonZeroU32::MIN,
            rate: None,
            retry_for: Some(Duration::from_mins(1)),
            rejects: None,
            ids: Ids::Run,
            state: None,
            repeat: Repeat::Refuse,
            wait: Some(Duration::from_secs(10)),
            report: Report::Quiet,
        }
    }

    /// Checks the flags. `TALLYLINE_TOKEN` takes precedence over `--token-file`.
    pub fn new(args: SendArgs, quiet: bool) -> Result<Self, UsageError> {
        let input = match (args.file.as_os_str() == "-", args.follow) {
            (true, true) => {
                return Err(UsageError::new(
                    "--follow needs a file; stdin is always read to its end",
                ));
            }
            (true, false) => Input::Stdin,
            (false, false) => Input::File(args.file),
            (false, true) => Input::Follow(args.file),
        };
        let ids = match (args.no_ids, args.source) {
            (true, _) => Ids::Off,
            (false, Some(name)) => Ids::Source(source_name(name)?),
            (false, None) => Ids::Run,
        };
        let state = args.state.or_else(|| default_state(&input));
        let rejects = args.rejects;
        refuse_one_file_for_two(
            &input,
            args.token_file.as_deref(),
            rejects.as_deref(),
            state.as_deref(),
        )?;
        Ok(Self {
            input,
            to: base_url(&args.to)?,
            token: token(
                args.token_file.as_deref(),
                std::env::var_os("TALLYLINE_TOKEN"),
            )?,
            batch: at_most("--batch", args.batch, BATCH_MAX)?,
            connections: at_most("--connections", args.connections, CONNECTIONS_MAX)?,
            rate: args.rate,
            retry_for: args.retry_for.0,
            rejects,
            ids,
            state,
            repeat: if args.again {
                Repeat::Again
            } else {
                Repeat::Refuse
            },
            wait: args.wait.0,
            report: match (args.json, quiet) {
                (true, _) => Report::Json,
                (false, true) => Report::Quiet,
                (false, false) => Report::Text,
            },
        })
    }
}

/// The default state file: `FILE.tallyline-state`.
fn state_beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".tallyline-state");
    name.into()
}

/// A state file beside the input, if that is a regular file or does not exist yet. Input that can be
/// read only once has none, because a run of it cannot be resumed.
fn default_state(input: &Input) -> Option<PathBuf> {
    let path = input.path()?;
    let read_once = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    let of_a_process = path.starts_with("/dev") || path.starts_with("/proc");
    (!read_once && !of_a_process).then(|| state_beside(path))
}

fn at_most(name: &str, value: NonZeroU32, max: u32) -> Result<NonZeroU32, UsageError> {
    if value.get() > max {
        return Err(UsageError::new(format!(
            "{name} {value} is out of range: from 1 to {max}"
        )));
    }
    Ok(value)
}

pub(super) fn base_url(text: &str) -> Result<String, UsageError> {
    let with_scheme = format!("http://{}", text.trim_end_matches('/'));
    let no_scheme = !text.contains("://") && with_scheme.parse::<Uri>().is_ok();
    let wrong = |why: &str| {
        let example = if no_scheme && !text.is_empty() {
            &with_scheme
        } else {
            "http://127.0.0.1:8000"
        };
        UsageError::new(format!(
            "--to {text:?} {why}; write a base URL such as {example}"
        ))
    };
    let base = text.trim_end_matches('/');
    let uri: Uri = base.parse().map_err(|_| wrong("is not a base URL"))?;
    let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong("is not a base URL"));
    };
    if uri.host().is_none_or(str::is_empty) || base.contains(['?', '#']) {
        return Err(wrong("is not a base URL"));
    }
    // `Uri` would replace an invalid port by the default port, and the token would go there.
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    let after_host = host_and_port.rsplit(']').next().unwrap_or_default();
    if let Some((_, port)) = after_host.split_once(':')
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return Err(wrong(&format!(
            "has the port {port:?}, which is not 1 to 65535"
        )));
    }
    // The full address of the endpoint is accepted, because the original client took it.
    Ok(base.strip_suffix("/liveEvent").unwrap_or(base).to_owned())
}

fn source_name(name: String) -> Result<String, UsageError> {
    if name.is_empty() || name.len() > SOURCE_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(UsageError::new(format!(
            "--source must have 1 to {SOURCE_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(name)
}

fn token(file: Option<&Path>, variable: Option<OsString>) -> Result<Option<Token>, UsageError> {
    let (token, from) = match (variable, file) {
        (Some(token), _) if !token.is_empty() => (
            token.to_string_lossy().trim().to_owned(),
            "TALLYLINE_TOKEN".to_owned(),
        ),
        (_, None) => return Ok(None),
        (_, Some(path)) => {
            let shown = format!("--token-file {}", path.display());
            let text = crate::data_dir::disk::read_to_string(path)
                .map_err(|error| UsageError::new(format!("{shown}: {error}")))?;
            let first = text
                .trim_start_matches('\u{feff}')
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty() && !line.starts_with('#'))
                .ok_or_else(|| UsageError::new(format!("{shown} holds no token")))?;
            (first.to_owned(), shown)
        }
    };
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(UsageError::new(format!(
            "{from}: invalid token; a token is printable ASCII without spaces"
        )));
    }
    Ok(Some(Token(token)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn config(flags: &[&str]) -> Result<SendConfig, UsageError> {
        let all = ["tallyline", "send"].iter().chain(flags);
        match Cli::try_parse_from(all).expect("flags").command {
            Command::Send(args) => SendConfig::new(*args, false),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_the_original_clients_file_and_a_state_beside_it() {
        let config = config(&[]).expect("defaults");
        assert_eq!(config.input, Input::File("events.jsonl".into()));
        assert_eq!(config.state, Some("events.jsonl.tallyline-state".into()));
        assert_eq!(config.to, "http://127.0.0.1:8000");
        assert_eq!((config.batch.get(), config.connections.get()), (500, 2));
        assert_eq!(config.retry_for, Some(Duration::from_mins(1)));
    }

    #[test]
    fn stdin_has_a_state_only_if_named() {
        assert_eq!(config(&["-"]).expect("stdin").state, None);
        let named = config(&["-", "--state", "s"]).expect("stdin");
        assert_eq!(named.state, Some("s".into()));
        assert!(config(&["-", "--follow"]).is_err());
    }

    #[test]
    fn base_urls() {
        let to = |url: &str| config(&["--to", url]).map(|config| config.to);
        assert_eq!(to("http://h:1/").ok(), Some("http://h:1".into()));
        assert_eq!(to("https://h/a/liveEvent").ok(), Some("https://h/a".into()));
        assert_eq!(
            to("http://[::1]:8000").ok(),
            Some("http://[::1]:8000".into())
        );
        for bad in [
            "h:1",
            "ftp://h",
            "http://",
            "http://h?x",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:0",
            "http://127.0.0.1:",
            "http://[::1]:65536",
            "http://user:12@h:99999/base",
            "http:// h",
        ] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_variable_wins_and_a_secret_is_not_shown() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("tokens");
        std::fs::write(&path, "# ours\n\n abc \nold\n").expect("write");
        let from_file = token(Some(&path), None).expect("good").expect("one");
        assert_eq!(from_file.header(), "Bearer abc");
        let from_variable = token(Some(&path), Some("xyz".into()))
            .expect("good")
            .expect("one");
        assert_eq!(from_variable.header(), "Bearer xyz");
        assert!(!format!("{from_file:?}").contains("abc"));
        assert!(token(None, Some("a b".into())).is_err());
    }

    #[test]
    fn the_input_is_not_overwritten() {
        for flag in ["--rejects", "--state"] {
            assert!(config(&["a.jsonl", flag, "a.jsonl"]).is_err());
        }
    }
}
