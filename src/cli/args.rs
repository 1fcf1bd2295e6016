//! The command line: flags only.
//!
//! [`config`](crate::cli::config) checks the flags against each other, applies bounds and fills in
//! defaults. A flag that is not given is read from the environment (`TALLYLINE_` and the flag's
//! name), then, for `serve`, from the config file.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use uuid::Uuid;

use crate::cli::{Size, Span};

/// The command line of every subcommand.
#[derive(Debug, Parser)]
#[command(name = "tallyline", version, propagate_version = true)]
#[command(about = "Ingests revenue events over HTTP, stores them in JSON Lines files, and keeps exact per-user totals", long_about = None)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  tallyline demo                                run everything once on a sample
  tallyline serve                               ingest events on http://127.0.0.1:8000
  tallyline send events.jsonl                   send a file to the server
  tallyline query user1                         show one user's total from the database
  tallyline generate --events 1000000 | tallyline send -

Exit codes: 0 done; 1 failed; 2 usage; 3 done, but events were refused or lines rejected.
A flag that is not given is read from the environment: --data-dir from TALLYLINE_DATA_DIR, etc.")]
pub struct Cli {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at the type")]
    pub logging: LoggingArgs,
    #[command(subcommand)]
    #[expect(missing_docs, reason = "documented at the type")]
    pub command: Command,
}

impl Cli {
    /// Parses the command line of this process. On `--help`, or if it is invalid, this prints the
    /// help or the error and exits.
    pub fn of_this_process() -> Self {
        for (old, name) in RENAMED {
            let [old, name] = [old, name].map(variable_of);
            if std::env::var_os(&old).is_some() {
                let text = format!("unknown environment variable {old}; did you mean {name}?");
                Self::command()
                    .error(ErrorKind::UnknownArgument, text)
                    .exit();
            }
        }
        Self::try_parse().unwrap_or_else(|error| with_todays_names(error).exit())
    }
}

/// Flags that were renamed: the former and the current name.
const RENAMED: [(&str, &str); 5] = [
    ("--flush-every", "--flush-interval"),
    ("--keep-ids", "--dedup-window"),
    ("--retain-for", "--retention"),
    ("--rotate-bytes", "--rotate-size"),
    ("--rotate-every", "--rotate-interval"),
];

/// The environment variable of a flag: `TALLYLINE_DATA_DIR` for `--data-dir`.
fn variable_of(flag: &str) -> String {
    format!("TALLYLINE{}", &flag[1..].replace('-', "_").to_uppercase())
}

/// The current name of a renamed flag or config key. Both are written without dashes in front.
pub(crate) fn renamed(key: &str) -> Option<&'static str> {
    let (_, name) = RENAMED.iter().find(|(old, _)| &old[2..] == key)?;
    Some(&name[2..])
}

/// Corrects the suggestion of an error: a renamed flag gets its current name, and an alias of a
/// command the command's own name.
fn with_todays_names(mut error: clap::Error) -> clap::Error {
    let renamed = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(given)) => RENAMED.iter().find(|(old, _)| old == given),
        _ => None,
    };
    if let Some((_, name)) = renamed {
        let name = ContextValue::String((*name).to_owned());
        error.insert(ContextKind::SuggestedArg, name);
    }
    if let Some(ContextValue::Strings(nearest)) = error.get(ContextKind::SuggestedSubcommand) {
        let command = Cli::command();
        let mut names: Vec<String> = Vec::new();
        for word in nearest {
            let found = command.find_subcommand(word);
            let name = found.map_or(word.as_str(), clap::Command::get_name);
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        error.insert(
            ContextKind::SuggestedSubcommand,
            ContextValue::Strings(names),
        );
    }
    error
}

/// How much every command logs to stderr, and in which format.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingArgs {
    /// Log more to stderr; give it twice to log every step
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only; no progress bar, and no summary on success
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Format of log lines on stderr: text or JSON
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    #[arg(default_value = "text", env = "TALLYLINE_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a server, send a sample to it and show the totals
    Demo(DemoArgs),
    /// Ingest events over HTTP, store them in files, apply them to the database
    #[command(alias = "server")]
    Serve(Box<ServeArgs>),
    /// Send events from a file or stdin to a server
    #[command(alias = "client")]
    Send(Box<SendArgs>),
    /// Apply all unapplied files of a data directory to the database, then exit
    #[command(alias = "processor")]
    Process(ProcessArgs),
    /// Recount the events in the files and compare the result with the database
    Verify(VerifyArgs),
    /// Copy a data directory; the server may be running
    Backup(BackupArgs),
    /// Restore a backup into a data directory; the server must be stopped
    Restore(RestoreArgs),
    /// Show totals from the database
    Query(QueryArgs),
    /// Write generated events to stdout
    Generate(GenerateArgs),
    /// Write a shell completion script to stdout
    Completions(CompletionsArgs),
    /// Write the manual page (roff) to stdout
    Man,
    /// Kill a real server with SIGKILL at random moments and check that no event is lost or counted twice
    Torture(TortureArgs),
}

/// Flags of `tallyline demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline demo                 show the totals and keep serving on http://127.0.0.1:8000/
  tallyline demo --exit          show the totals and exit")]
pub struct DemoArgs {
    /// Exit after showing the totals instead of serving until a signal
    #[arg(long)]
    pub exit: bool,
    /// Address and port to listen on, loopback only; port 0 picks a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    #[arg(env = "TALLYLINE_LISTEN")]
    pub listen: String,
    /// Data directory of the demo; must be new, empty or from an earlier demo [default: data/demo]
    #[arg(long, value_name = "DIR", env = "TALLYLINE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Flags of `tallyline serve`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  tallyline serve                                      on http://127.0.0.1:8000, files in data/
  tallyline serve --rotate-interval 10s --flush-interval 100ms
  tallyline serve --listen 0.0.0.0:8000 --token-file /etc/tallyline/tokens
  tallyline serve --listen 127.0.0.1:0 --port-file port     in CI: any free port
  tallyline serve --config tallyline.toml --check      print the effective configuration and exit

Durations: 10ms, 1s, 5m, 30days, or forever. Sizes: 4096, 64KiB, 256MiB, 1GB.
The config file is TOML with the flags' names: rotate-interval = \"1m\", no-process = true.
Flags override environment variables (TALLYLINE_ROTATE_INTERVAL), which override the config file.")]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 picks a free port [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR", env = "TALLYLINE_LISTEN")]
    #[arg(help_heading = "Network and access")]
    pub listen: Option<String>,
    /// File of bearer tokens, one a line; this or --no-auth is required to listen beyond loopback
    #[arg(long, value_name = "FILE", env = "TALLYLINE_TOKEN_FILE")]
    #[arg(help_heading = "Network and access")]
    pub token_file: Option<PathBuf>,
    /// Listen beyond loopback without tokens: every client that reaches the port can post and read
    #[arg(long, env = "TALLYLINE_NO_AUTH", value_name = "true|false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(help_heading = "Network and access", hide_possible_values = true)]
    pub no_auth: Option<bool>,
    /// Write the port number to this file when the server is ready for requests
    #[arg(long, value_name = "FILE", env = "TALLYLINE_PORT_FILE")]
    #[arg(help_heading = "Network and access")]
    pub port_file: Option<PathBuf>,
    /// Maximum size of a request body, raw and decompressed [default: 8MiB]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MAX_BODY")]
    #[arg(help_heading = "Network and access")]
    pub max_body: Option<Size>,
    /// Close a connection idle for this long; must exceed a reverse proxy's timeout [default: 75s]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_KEEP_ALIVE")]
    #[arg(help_heading = "Network and access")]
    pub keep_alive: Option<Span>,

    /// Data directory, for events and totals; created if missing [default: data]
    #[arg(long, value_name = "DIR", env = "TALLYLINE_DATA_DIR")]
    #[arg(help_heading = "Files and disk")]
    pub data_dir: Option<PathBuf>,
    /// Start only if the data directory has this UUID (see its directory.json); detects a volume
    /// that is not mounted [default: any]
    #[arg(long, value_name = "UUID", env = "TALLYLINE_EXPECT_ID")]
    #[arg(help_heading = "Files and disk")]
    pub expect_id: Option<Uuid>,
    /// Seal the active file this long after its first line [default: 1m]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_ROTATE_INTERVAL")]
    #[arg(help_heading = "Files and disk")]
    pub rotate_interval: Option<Span>,
    /// Seal the active file at this size [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_ROTATE_SIZE")]
    #[arg(help_heading = "Files and disk")]
    pub rotate_size: Option<Size>,
    /// Maximum size of the data directory; events beyond it get status 507 [default: unlimited]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MAX_DISK")]
    #[arg(help_heading = "Files and disk")]
    pub max_disk: Option<Size>,
    /// Disk space kept free for applying and pruning; events that need it get status 507 [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_DISK_RESERVE")]
    #[arg(help_heading = "Files and disk")]
    pub disk_reserve: Option<Size>,
    /// Delete a file this long after it was fully applied [default: forever]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_RETENTION")]
    #[arg(help_heading = "Files and disk")]
    pub retention: Option<Span>,

    /// Maximum delay between acknowledgement and totals, at most 1day; shorter under load [default: 1s]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_FLUSH_INTERVAL")]
    #[arg(help_heading = "Processing")]
    pub flush_interval: Option<Span>,
    /// Deduplication window: how long the ids of applied events are kept [default: forever]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_DEDUP_WINDOW")]
    #[arg(help_heading = "Processing")]
    pub dedup_window: Option<Span>,
    /// Maximum memory of the processor [default: an eighth of the memory of the machine or of the control
    /// group, 64MiB to 512MiB]. Sums that do not fit are written to temporary files in the data directory
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MEMORY")]
    #[arg(help_heading = "Processing")]
    pub memory: Option<Size>,
    /// Only ingest events; run `tallyline process` to apply them
    #[arg(long, env = "TALLYLINE_NO_PROCESS", value_name = "true|false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(help_heading = "Processing", hide_possible_values = true)]
    pub no_process: Option<bool>,

    /// Read settings from this TOML file; flags and environment variables override it
    #[arg(long, value_name = "FILE", env = "TALLYLINE_CONFIG")]
    #[arg(help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration as TOML and exit
    #[arg(long, help_heading = "Configuration")]
    pub check: bool,
}

/// Flags of `tallyline send`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline send                                send ./events.jsonl to http://127.0.0.1:8000
  tallyline send day.jsonl.gz --rejects bad.jsonl
  producer | tallyline send - --to https://events.example.com
  tallyline send app.jsonl --follow             follow a growing file and its rotation
  tallyline send invoices.jsonl --source invoices-2026     counted once, from any machine

If it is interrupted (Ctrl-C, kill -9, a crash of either side), run the same command again: it
continues where it stopped, and every event is counted once. A file that was sent in full is not
sent to the same server again (exit code 2) unless --again is given; later lines of it are sent.
If the server requires a token, set TALLYLINE_TOKEN or give --token-file.
Exit codes: 0 all accepted; 1 failed or stopped; 2 usage, or sent in full before; 3 sent, but some
events were refused, or rejected because their id belongs to another event.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the switches of a command line"
)]
pub struct SendArgs {
    /// File of events, one JSON object a line or a JSON array, plain or gzip'd; `-` is stdin
    #[arg(value_name = "FILE", default_value = "events.jsonl")]
    pub file: PathBuf,

    /// Base URL of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    #[arg(env = "TALLYLINE_TO", help_heading = "Server")]
    pub to: String,
    /// File with the bearer token: its first line that is neither empty nor a # comment
    #[arg(long, value_name = "FILE", env = "TALLYLINE_TOKEN_FILE")]
    #[arg(help_heading = "Server")]
    pub token_file: Option<PathBuf>,
    /// Give up if a request gets no answer for this long; `forever` never gives up
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    #[arg(env = "TALLYLINE_RETRY_FOR", help_heading = "Server")]
    pub retry_for: Span,

    /// Maximum events per request
    #[arg(long, value_name = "N", default_value = "500", env = "TALLYLINE_BATCH")]
    #[arg(help_heading = "Speed")]
    pub batch: NonZeroU32,
    /// Maximum concurrent requests, one connection each
    #[arg(long, value_name = "N", default_value = "2")]
    #[arg(env = "TALLYLINE_CONNECTIONS", help_heading = "Speed")]
    pub connections: NonZeroU32,
    /// Maximum events per second [default: unlimited]
    #[arg(long, value_name = "N", env = "TALLYLINE_RATE")]
    #[arg(help_heading = "Speed")]
    pub rate: Option<NonZeroU64>,

    /// Make ids from NAME and line numbers, so that every machine that sends the file makes the same ids
    #[arg(long, value_name = "NAME", env = "TALLYLINE_SOURCE")]
    #[arg(conflicts_with_all = ["no_ids", "follow"], help_heading = "Counting once")]
    pub source: Option<String>,
    /// Do not add ids; events sent again after a lost answer may count twice
    #[arg(long, help_heading = "Counting once")]
    pub no_ids: bool,
    /// Send a file again that was sent in full before; its events count again
    #[arg(long, conflicts_with = "follow", help_heading = "Counting once")]
    pub again: bool,
    /// State file of the run's name and progress [default: FILE.tallyline-state; none for stdin]
    #[arg(long, value_name = "FILE", env = "TALLYLINE_STATE")]
    #[arg(help_heading = "Counting once")]
    pub state: Option<PathBuf>,

    /// Maximum time to wait, after sending, until the totals include all events; 0s does not wait
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        env = "TALLYLINE_WAIT"
    )]
    #[arg(help_heading = "Input and output")]
    pub wait: Span,
    /// Keep running and send lines as they are added to the file, like `tail -F`
    #[arg(long, help_heading = "Input and output")]
    pub follow: bool,
    /// Write refused lines to this file as JSON Lines, with line number and reason
    #[arg(long, value_name = "FILE", env = "TALLYLINE_REJECTS")]
    #[arg(help_heading = "Input and output")]
    pub rejects: Option<PathBuf>,
    /// Print the summary as one JSON object
    #[arg(long, help_heading = "Input and output")]
    pub json: bool,
}

/// Flags of `tallyline process`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline process                             apply all unapplied files of data/
  tallyline process --data-dir /var/lib/tallyline
  tallyline process backup/events_1700000000000.jsonl     copy the file in, then apply it
  tallyline process march.json april.jsonl.gz   convert JSON arrays and gzip, then apply
  tallyline process --rebuild                   build a new database from all files

Exit codes: 0 all applied; 1 failed, or a file was refused or a segment is missing; 3 applied, but some lines were rejected.")]
pub struct ProcessArgs {
    /// Files to import into the data directory and apply [default: apply the files in it]
    ///
    /// JSON Lines are copied; gzip, JSON arrays and objects over several lines are converted. A file
    /// that was imported before is skipped; it is recognised by its name and content. A segment of a
    /// tallyline data directory is recognised by its first line, whatever its name, and only the
    /// events in it that are not applied yet are counted.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Data directory, for events and totals; created if missing
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Build a new database from all files of the data directory; the server must be stopped
    #[arg(long)]
    pub rebuild: bool,
    /// Maximum memory [default: an eighth of the memory of the machine or of the control group, 64MiB to
    /// 512MiB]. Sums that do not fit are written to temporary files in the data directory
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MEMORY")]
    pub memory: Option<Size>,
}

/// Flags of `tallyline verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline verify
  tallyline verify --data-dir /var/lib/tallyline     the server may be running

Exit codes: 0 files and database agree; 1 they differ, or some files could not be checked.")]
pub struct VerifyArgs {
    /// Data directory
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// Flags of `tallyline backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline backup /backup/2026-11-22
  tallyline backup /backup/2026-11-22 --data-dir /var/lib/tallyline --verify

The backup holds every event that was acknowledged before it began. It appears under its name only
when it is complete. `tallyline verify --data-dir DIR` checks it at any time.")]
pub struct BackupArgs {
    /// Backup directory to create; must not exist, and must lie outside the data directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Data directory to copy
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Recount the finished backup and compare the result with its database
    #[arg(long)]
    pub verify: bool,
}

/// Flags of `tallyline restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline restore /backup/2026-11-22
  tallyline restore /backup/2026-11-22 --data-dir /var/lib/tallyline

Missing files are added; no existing file is replaced. The database is replaced, and the old one is
moved to quarantine/. Events in existing files that the backup lacks are applied at the next start.
If restore is interrupted, run it again; until it completes, no command uses the directory.")]
pub struct RestoreArgs {
    /// Backup directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Data directory to restore into; created if missing
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// Flags of `tallyline query`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline query                    overall totals, and the 20 users with the highest revenue
  tallyline query user1 user2        the totals of these users
  tallyline query --top 1000 --csv > top.csv
  tallyline query user1 --json | jq .[0].revenue

The server need not run. While it runs, the database is about a second behind its acknowledgements.")]
pub struct QueryArgs {
    /// Users whose totals to show [default: overall totals and the top users]
    #[arg(value_name = "USER")]
    pub users: Vec<String>,
    /// Number of users to show, highest revenue first
    #[arg(long, value_name = "N", default_value_t = 20, env = "TALLYLINE_TOP")]
    pub top: u32,
    /// Data directory
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV: one user a row, with a header row
    #[arg(long)]
    pub csv: bool,
}

/// Flags of `tallyline generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline generate > events.jsonl
  tallyline generate --events 10000000 --users 1000000 --seed 7 | tallyline send -

The same numbers give the same bytes. A few users have most of the events; 3 in 10 events subtract.")]
pub struct GenerateArgs {
    /// Number of events
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub events: u64,
    /// Approximate number of users
    #[arg(long, value_name = "N", default_value = "100")]
    pub users: NonZeroU32,
    /// Seed of the random number generator
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Give every event an id
    #[arg(long)]
    pub ids: bool,
}

/// Flags of `tallyline completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline completions bash > ~/.local/share/bash-completion/completions/tallyline
  tallyline completions zsh > \"${fpath[1]}/_tallyline\"
  tallyline completions fish > ~/.config/fish/completions/tallyline.fish")]
pub struct CompletionsArgs {
    /// Shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Flags of `tallyline torture`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline torture                             20 rounds in a temporary directory
  tallyline torture --dir /mnt/disk/torture --rounds 3000 --seed 1")]
pub struct TortureArgs {
    /// Directory on the disk to test; must be new or empty [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Number of times to kill and restart the server
    #[arg(long, value_name = "N", default_value = "20")]
    pub rounds: NonZeroU32,
    /// Seed of the random moments [default: from the clock]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn aliases_of_the_original_programs() {
        for (alias, name) in [
            ("server", "serve"),
            ("client", "send"),
            ("processor", "process"),
        ] {
            let matches = Cli::command()
                .try_get_matches_from(["tallyline", alias])
                .expect(alias);
            assert_eq!(matches.subcommand_name(), Some(name));
        }
    }

    #[test]
    fn a_misspelt_flag_is_a_usage_error_with_the_right_one_named() {
        let error = Cli::try_parse_from(["tallyline", "serve", "--rotate-evry", "1m"])
            .expect_err("no such flag");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--rotate-interval"), "{error}");
    }

    #[test]
    fn a_renamed_flag_is_a_usage_error_with_its_new_name() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("it is there");
        for (old, name) in RENAMED {
            let error = Cli::try_parse_from(["tallyline", "serve", old, "1"]).expect_err("unknown");
            let text = with_todays_names(error).to_string();
            assert!(text.contains(&format!("'{name}'")), "{text}");
            let mut flags = serve.get_arguments().filter_map(clap::Arg::get_long);
            assert!(flags.any(|flag| flag == &name[2..]), "{name} is not a flag");
        }
        assert_eq!(variable_of("--data-dir"), "TALLYLINE_DATA_DIR");
    }

    #[test]
    fn a_misspelt_command_is_hinted_at_by_name_and_once() {
        for (word, name) in [("servr", "serve"), ("sennd", "send"), ("clint", "send")] {
            let error = Cli::try_parse_from(["tallyline", word]).expect_err("no such command");
            let error = with_todays_names(error);
            assert_eq!(error.exit_code(), 2);
            let words = error.to_string();
            let hint = words
                .lines()
                .find(|line| line.contains("similar subcommand"));
            let hint = hint.expect("a hint");
            assert_eq!(hint.matches(&format!("'{name}'")).count(), 1, "{words}");
            assert!(
                !hint.contains("'server'") && !hint.contains("'client'"),
                "{words}"
            );
        }
    }

    #[test]
    fn every_long_flag_but_switches_can_be_set_by_its_variable() {
        let command = Cli::command();
        for name in ["serve", "send"] {
            let command = command.find_subcommand(name).expect(name);
            for arg in command.get_arguments() {
                let (Some(long), Some(variable)) = (arg.get_long(), arg.get_env()) else {
                    continue;
                };
                let expected = format!("TALLYLINE_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(variable.to_str(), Some(expected.as_str()), "--{long}");
            }
        }
    }
}
