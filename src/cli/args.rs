//! The command line: the flags and nothing else.
//!
//! What the flags mean together, their bounds and their defaults is decided in
//! [`config`](crate::cli::config). A flag left out is looked for in the environment (`TALLYLINE_` and
//! the flag's name); `serve` then looks into its config file.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use uuid::Uuid;

use crate::cli::{Size, Span};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "tallyline", version, propagate_version = true)]
#[command(about = "Takes revenue events over HTTP, keeps them in JSON Lines files, and keeps exact per-user totals", long_about = None)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  tallyline demo                                the whole path on a sample, in one go
  tallyline serve                               take events on http://127.0.0.1:8000
  tallyline send events.jsonl                   send a file to it
  tallyline query user1                         one user's total, out of the database
  tallyline generate --events 1000000 | tallyline send -

Exit codes: 0 done; 1 failed; 2 usage; 3 done, but events were refused or lines rejected.
A flag left out is read from the environment: --data-dir from TALLYLINE_DATA_DIR, and so on.")]
pub struct Cli {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at the type")]
    pub logging: LoggingArgs,
    #[command(subcommand)]
    #[expect(missing_docs, reason = "documented at the type")]
    pub command: Command,
}

impl Cli {
    /// The command line of this process. Where it can't be understood, or asks for help, the words
    /// are shown and the process ends.
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

/// Flags of earlier versions and their names today.
const RENAMED: [(&str, &str); 5] = [
    ("--flush-every", "--flush-interval"),
    ("--keep-ids", "--dedup-window"),
    ("--retain-for", "--retention"),
    ("--rotate-bytes", "--rotate-size"),
    ("--rotate-every", "--rotate-interval"),
];

/// The variable of a flag: `TALLYLINE_DATA_DIR` of `--data-dir`.
fn variable_of(flag: &str) -> String {
    format!("TALLYLINE{}", &flag[1..].replace('-', "_").to_uppercase())
}

/// Today's name of a flag or config key of an earlier version, which is written without dashes.
pub(crate) fn renamed(key: &str) -> Option<&'static str> {
    let (_, name) = RENAMED.iter().find(|(old, _)| &old[2..] == key)?;
    Some(&name[2..])
}

/// "Did you mean" names a renamed flag by its new name, and a command by its name, whichever of its
/// aliases came nearest.
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

/// What goes to stderr, for every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingArgs {
    /// Say more on stderr; twice for every step
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say only what went wrong; no progress bar, no summary of what went well
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// How log lines on stderr look: text, or json for machines
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

/// The look of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve, send a sample through the real client, show the totals
    Demo(DemoArgs),
    /// Take events over HTTP, keep them in files, apply them to the database
    #[command(alias = "server")]
    Serve(Box<ServeArgs>),
    /// Send a file or stdin of events to a server
    #[command(alias = "client")]
    Send(Box<SendArgs>),
    /// Apply every file of a data directory to the database, then exit
    #[command(alias = "processor")]
    Process(ProcessArgs),
    /// Recount from the files and compare with the database
    Verify(VerifyArgs),
    /// Copy a data directory, also beside a running server
    Backup(BackupArgs),
    /// Put a backup back into a data directory; the server must be stopped
    Restore(RestoreArgs),
    /// Show totals, read from the database
    Query(QueryArgs),
    /// Write a workload of made-up events to stdout
    Generate(GenerateArgs),
    /// Write the completion script for a shell to stdout
    Completions(CompletionsArgs),
    /// Write the manual page (roff) to stdout
    Man,
    /// Kill -9 a real server at random moments and prove that nothing is lost or doubled
    Torture(TortureArgs),
}

/// `tallyline demo`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline demo                 show the totals and keep serving: look at http://127.0.0.1:8000/
  tallyline demo --exit          show the totals and exit")]
pub struct DemoArgs {
    /// Exit once the totals are shown, instead of serving on
    #[arg(long)]
    pub exit: bool,
    /// Address and port to listen on, loopback only; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    #[arg(env = "TALLYLINE_LISTEN")]
    pub listen: String,
    /// Where the demo keeps its files; must be new, empty or a former demo's [default: data/demo]
    #[arg(long, value_name = "DIR", env = "TALLYLINE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `tallyline serve`
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  tallyline serve                                      on http://127.0.0.1:8000, files in data/
  tallyline serve --rotate-interval 10s --flush-interval 100ms
  tallyline serve --listen 0.0.0.0:8000 --token-file /etc/tallyline/tokens
  tallyline serve --listen 127.0.0.1:0 --port-file port     in CI: any free port
  tallyline serve --config tallyline.toml --check      what would be in force, and exit

Durations: 10ms, 1s, 5m, 30days, or forever. Sizes: 4096, 64KiB, 256MiB, 1GB.
The config file is TOML with the flags' names: rotate-interval = \"1m\", no-process = true.
Flags win over the environment (TALLYLINE_ROTATE_INTERVAL), that over the config file.")]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 picks a free one [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR", env = "TALLYLINE_LISTEN")]
    #[arg(help_heading = "Network and access")]
    pub listen: Option<String>,
    /// File of Bearer tokens, one a line; needed (or --no-auth) to listen beyond loopback
    #[arg(long, value_name = "FILE", env = "TALLYLINE_TOKEN_FILE")]
    #[arg(help_heading = "Network and access")]
    pub token_file: Option<PathBuf>,
    /// Listen beyond loopback without any token: every client that reaches the port may post and read
    #[arg(long, env = "TALLYLINE_NO_AUTH", value_name = "true|false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(help_heading = "Network and access", hide_possible_values = true)]
    pub no_auth: Option<bool>,
    /// Write the port number to this file once the port answers
    #[arg(long, value_name = "FILE", env = "TALLYLINE_PORT_FILE")]
    #[arg(help_heading = "Network and access")]
    pub port_file: Option<PathBuf>,
    /// Largest request body, raw and decompressed [default: 8MiB]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MAX_BODY")]
    #[arg(help_heading = "Network and access")]
    pub max_body: Option<Size>,
    /// How long an idle connection is kept; longer than a proxy in front keeps its own [default: 75s]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_KEEP_ALIVE")]
    #[arg(help_heading = "Network and access")]
    pub keep_alive: Option<Span>,

    /// Where events and totals are kept; created if missing [default: data]
    #[arg(long, value_name = "DIR", env = "TALLYLINE_DATA_DIR")]
    #[arg(help_heading = "Files and disk")]
    pub data_dir: Option<PathBuf>,
    /// Start only if the data directory has this UUID (see its directory.json), for a volume that
    /// may not be mounted [default: any]
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
    /// Answer 507 before the data directory grows past this [default: no bound but the disk]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MAX_DISK")]
    #[arg(help_heading = "Files and disk")]
    pub max_disk: Option<Size>,
    /// Disk kept free for applying and pruning; appends get 507 before it is touched [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_DISK_RESERVE")]
    #[arg(help_heading = "Files and disk")]
    pub disk_reserve: Option<Size>,
    /// Remove whole files this long after they were applied [default: forever]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_RETENTION")]
    #[arg(help_heading = "Files and disk")]
    pub retention: Option<Span>,

    /// How often new events reach the database, at most 1day; where many come, sooner [default: 1s]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_FLUSH_INTERVAL")]
    #[arg(help_heading = "Processing")]
    pub flush_interval: Option<Span>,
    /// How long ids of applied events are remembered [default: forever]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_DEDUP_WINDOW")]
    #[arg(help_heading = "Processing")]
    pub dedup_window: Option<Span>,
    /// Memory the processor may hold, all in all [default: 384MiB]
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MEMORY")]
    #[arg(help_heading = "Processing")]
    pub memory: Option<Size>,
    /// Only take events; `tallyline process` applies them
    #[arg(long, env = "TALLYLINE_NO_PROCESS", value_name = "true|false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(help_heading = "Processing", hide_possible_values = true)]
    pub no_process: Option<bool>,

    /// Read settings from this TOML file, below flags and environment
    #[arg(long, value_name = "FILE", env = "TALLYLINE_CONFIG")]
    #[arg(help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration as TOML and exit
    #[arg(long, help_heading = "Configuration")]
    pub check: bool,
}

/// `tallyline send`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline send                                events.jsonl here, to http://127.0.0.1:8000
  tallyline send day.jsonl.gz --rejects bad.jsonl
  producer | tallyline send - --to https://events.example.com
  tallyline send app.jsonl --follow             a growing file, across its rotation
  tallyline send invoices.jsonl --source invoices-2026     never counted twice, from any machine

Interrupted (Ctrl-C, kill -9, a crash of either side)? Run the same command again: it continues
where it stopped and counts nothing twice. A file that was sent in full is not sent to the same
server again (exit code 2) unless --again; lines added to it since are.
Token, if the server wants one: TALLYLINE_TOKEN in the environment, or --token-file.
Exit codes: 0 all accepted; 1 failed or stopped; 2 usage, or sent in full before; 3 sent, but some
events were refused, or rejected because their id names another event.")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the switches of a command line"
)]
pub struct SendArgs {
    /// File of events, one JSON object a line or a JSON array, gzip'd or not; `-` is stdin
    #[arg(value_name = "FILE", default_value = "events.jsonl")]
    pub file: PathBuf,

    /// Base URL of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    #[arg(env = "TALLYLINE_TO", help_heading = "Server")]
    pub to: String,
    /// File with the Bearer token (its first line that is neither empty nor a # comment)
    #[arg(long, value_name = "FILE", env = "TALLYLINE_TOKEN_FILE")]
    #[arg(help_heading = "Server")]
    pub token_file: Option<PathBuf>,
    /// Give up after this long without an answer to the same request, or forever
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    #[arg(env = "TALLYLINE_RETRY_FOR", help_heading = "Server")]
    pub retry_for: Span,

    /// Events per request; 1 sends each alone
    #[arg(long, value_name = "N", default_value = "500", env = "TALLYLINE_BATCH")]
    #[arg(help_heading = "Speed")]
    pub batch: NonZeroU32,
    /// Requests under way at once
    #[arg(long, value_name = "N", default_value = "2")]
    #[arg(env = "TALLYLINE_CONNECTIONS", help_heading = "Speed")]
    pub connections: NonZeroU32,
    /// At most this many events a second [default: as fast as they are taken]
    #[arg(long, value_name = "N", env = "TALLYLINE_RATE")]
    #[arg(help_heading = "Speed")]
    pub rate: Option<NonZeroU64>,

    /// Make ids of NAME and the line's number: counted once, from any machine
    #[arg(long, value_name = "NAME", env = "TALLYLINE_SOURCE")]
    #[arg(conflicts_with_all = ["no_ids", "follow"], help_heading = "Counting once")]
    pub source: Option<String>,
    /// Send events as they are; what is sent again after a lost answer may count twice
    #[arg(long, help_heading = "Counting once")]
    pub no_ids: bool,
    /// Send a file once more that was sent in full before: its events count again
    #[arg(long, conflicts_with = "follow", help_heading = "Counting once")]
    pub again: bool,
    /// Keep the run's name and progress here [default: FILE.tallyline-state; none for stdin]
    #[arg(long, value_name = "FILE", env = "TALLYLINE_STATE")]
    #[arg(help_heading = "Counting once")]
    pub state: Option<PathBuf>,

    /// Once all is sent, wait this long at most until it is in the totals; 0s: do not wait
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        env = "TALLYLINE_WAIT"
    )]
    #[arg(help_heading = "Input and output")]
    pub wait: Span,
    /// Stay and send what is added to the file, like `tail -F`
    #[arg(long, help_heading = "Input and output")]
    pub follow: bool,
    /// Write refused lines here, with line number and reason, as JSON Lines
    #[arg(long, value_name = "FILE", env = "TALLYLINE_REJECTS")]
    #[arg(help_heading = "Input and output")]
    pub rejects: Option<PathBuf>,
    /// Print the summary as one JSON object
    #[arg(long, help_heading = "Input and output")]
    pub json: bool,
}

/// `tallyline process`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline process                             every file of data/ that is not applied yet
  tallyline process --data-dir /var/lib/tallyline
  tallyline process backup/events_1700000000000.jsonl     copy it in, then apply it
  tallyline process march.json april.jsonl.gz   JSON arrays and gzip are converted on the way
  tallyline process --rebuild                   a new database from all files

Exit codes: 0 all applied; 1 failed, or a file was refused; 3 applied, but some lines were rejected.")]
pub struct ProcessArgs {
    /// Files to copy into the data directory and apply [default: apply what is there]
    ///
    /// JSON Lines; gzip, JSON arrays and objects over several lines are converted on import. A file
    /// that was applied before is skipped: by its name and content; a segment of a tallyline data
    /// directory by what its first line says, under whatever name, and only what is new in it counts.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where events and totals are kept; created if missing
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Make the database anew from all kept files; the server must be stopped
    #[arg(long)]
    pub rebuild: bool,
    /// Memory it may hold, all in all
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "384MiB",
        env = "TALLYLINE_MEMORY"
    )]
    pub memory: Size,
}

/// `tallyline verify`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline verify
  tallyline verify --data-dir /var/lib/tallyline     also beside a running server

Exit codes: 0 files and database agree; 1 they differ, or some files could not be checked.")]
pub struct VerifyArgs {
    /// Where events and totals are kept
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// `tallyline backup`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline backup /backup/2026-11-22
  tallyline backup /backup/2026-11-22 --data-dir /var/lib/tallyline --verify

The backup holds every event that was acknowledged before it began. It appears under its name only
when it is complete. `tallyline verify --data-dir DIR` checks it at any time.")]
pub struct BackupArgs {
    /// The backup to create; must not exist, and must lie outside the data directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Where events and totals are kept
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Recount the finished backup and compare with its database
    #[arg(long)]
    pub verify: bool,
}

/// `tallyline restore`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline restore /backup/2026-11-22
  tallyline restore /backup/2026-11-22 --data-dir /var/lib/tallyline

Files are added where they are missing and never replaced; the database is replaced, the old one kept
in quarantine/. What the files there hold beyond the backup is applied at the next start. If it is
interrupted, run it again: until then the directory is not used.")]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Where to restore it; created if missing
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// `tallyline query`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline query                    all in all, and the 20 users with the highest revenue
  tallyline query user1 user2        these users
  tallyline query --top 1000 --csv > top.csv
  tallyline query user1 --json | jq .[0].revenue

The server need not run; where it does, the database is about a second behind its answers.")]
pub struct QueryArgs {
    /// Whose totals; none: all in all and the top
    #[arg(value_name = "USER")]
    pub users: Vec<String>,
    /// How many users to show, highest revenue first
    #[arg(long, value_name = "N", default_value_t = 20, env = "TALLYLINE_TOP")]
    pub top: u32,
    /// Where events and totals are kept
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV: the users, with a heading
    #[arg(long)]
    pub csv: bool,
}

/// `tallyline generate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline generate > events.jsonl
  tallyline generate --events 10000000 --users 1000000 --seed 7 | tallyline send -

The same numbers give the same bytes. A few users have most of the events; 3 in 10 subtract.")]
pub struct GenerateArgs {
    /// How many events
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub events: u64,
    /// Among about how many users
    #[arg(long, value_name = "N", default_value = "100")]
    pub users: NonZeroU32,
    /// Another seed, other events
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Give every event an id
    #[arg(long)]
    pub ids: bool,
}

/// `tallyline completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline completions bash > ~/.local/share/bash-completion/completions/tallyline
  tallyline completions zsh > \"${fpath[1]}/_tallyline\"
  tallyline completions fish > ~/.config/fish/completions/tallyline.fish")]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// `tallyline torture`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline torture                             20 rounds in a temporary directory
  tallyline torture --dir /mnt/disk/torture --rounds 3000 --seed 1")]
pub struct TortureArgs {
    /// Directory on the disk to test; must be new or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How many times to kill and restart
    #[arg(long, value_name = "N", default_value = "20")]
    pub rounds: NonZeroU32,
    /// What to draw the random moments from [default: the clock]
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
            assert!(flags.any(|flag| flag == &name[2..]), "{name} is a flag");
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
