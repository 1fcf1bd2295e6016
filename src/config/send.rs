//! `tallyline send`: what to send, where to, and how it is counted once.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::UsageError;
use crate::cli::SendArgs;

/// The most events in one request; the body's bytes are bounded apart from it.
const BATCH_MAX: u32 = 100_000;
/// The most requests under way at once: each has a thread.
const CONNECTIONS_MAX: u32 = 256;
/// The longest `--source`: with a dash and the line's number, an id stays under 128 bytes.
const SOURCE_BYTES_MAX: usize = 100;

/// What the sender is to do.
#[derive(Clone, Debug)]
pub struct SendConfig {
    /// What to send. Default the file `events.jsonl`.
    pub input: Input,
    /// Base URL of the server without a slash at the end. Default `http://127.0.0.1:8000`.
    pub to: String,
    /// Bearer token, from `TALLYLINE_TOKEN` or `--token-file`. Default none. Never logged.
    pub token: Option<Token>,
    /// Events a request; 1 sends each alone. Default 500, 1 to 100,000.
    pub batch: NonZeroU32,
    /// Requests under way at once. Default 2, 1 to 256.
    pub connections: NonZeroU32,
    /// At most this many events a second. Default no bound.
    pub rate: Option<NonZeroU64>,
    /// Give up after this long without an answer to the same request; `None`: never. Default 1 min.
    pub retry_for: Option<Duration>,
    /// Where refused lines go, as JSON Lines. Default nowhere: the first few are logged.
    pub rejects: Option<PathBuf>,
    /// What ids events without one get. Default [`Ids::Run`].
    pub ids: Ids,
    /// Where the run's name and progress are kept; `None`: nowhere. Default beside the file.
    pub state: Option<PathBuf>,
    /// How the summary is shown.
    pub report: Report,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The bytes of stdin until its end.
    Stdin,
    /// A file, until its end.
    File(PathBuf),
    /// A growing file, for ever, across its rotation.
    Follow(PathBuf),
}

impl Input {
    /// The path, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdin => None,
            Self::File(path) | Self::Follow(path) => Some(path),
        }
    }
}

/// The ids that events without one get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Made of the run's name and the line's number: resending counts nothing twice.
    Run,
    /// Made of this name and the line's number: never counted twice, whoever sends it.
    Source(String),
    /// None: a resend after a lost answer may count twice.
    Off,
}

/// How the summary is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A few lines for people.
    Text,
    /// One JSON object.
    Json,
    /// Only if something went wrong.
    Quiet,
}

/// A secret: shown by nobody's `Debug`.
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
    /// The file's events to `to` with everything else at its default, no state and no report.
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
            report: Report::Quiet,
        }
    }

    /// The flags, checked; the token from `TALLYLINE_TOKEN` (it wins) or `--token-file`.
    pub fn new(args: SendArgs, quiet: bool) -> Result<Self, UsageError> {
        let input = match (args.file.as_os_str() == "-", args.follow) {
            (true, true) => {
                return Err(UsageError::new(
                    "--follow needs a file; stdin is followed to its end anyway",
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
        let state = args.state.or_else(|| input.path().map(state_beside));
        let rejects = args.rejects;
        for (flag, path) in [("--rejects", &rejects), ("--state", &state)] {
            if let (Some(path), Some(file)) = (path, input.path())
                && same_file(path, file)
            {
                let path = path.display();
                return Err(UsageError::new(format!(
                    "{flag} {path} is the file to send; name another"
                )));
            }
        }
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
            report: match (args.json, quiet) {
                (true, _) => Report::Json,
                (false, true) => Report::Quiet,
                (false, false) => Report::Text,
            },
        })
    }
}

/// `FILE.tallyline-state`.
fn state_beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".tallyline-state");
    name.into()
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn at_most(name: &str, value: NonZeroU32, max: u32) -> Result<NonZeroU32, UsageError> {
    if value.get() > max {
        return Err(UsageError::new(format!(
            "{name} {value} is out of range: from 1 to {max}"
        )));
    }
    Ok(value)
}

fn base_url(text: &str) -> Result<String, UsageError> {
    let base = text.trim_end_matches('/');
    let host = base
        .strip_prefix("http://")
        .or_else(|| base.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['?', '#', ' ']) => {
            // Told the whole address, the original client's habit, we know what was meant.
            Ok(base.strip_suffix("/liveEvent").unwrap_or(base).to_owned())
        }
        _ => Err(UsageError::new(format!(
            "--to {text:?} is no base URL; write one such as http://127.0.0.1:8000"
        ))),
    }
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
            let text = crate::fs::read_to_string(path)
                .map_err(|error| UsageError::new(format!("{shown}: {error}")))?;
            let first = text
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty() && !line.starts_with('#'))
                .ok_or_else(|| UsageError::new(format!("{shown} holds no token")))?;
            (first.to_owned(), shown)
        }
    };
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(UsageError::new(format!(
            "{from}: a token is printable ASCII without spaces"
        )));
    }
    Ok(Some(Token(token)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
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
        for bad in ["h:1", "ftp://h", "http://", "http://h?x"] {
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
