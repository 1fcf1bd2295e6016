//! The flags of `send`.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use clap::Args;

use crate::cli::Span;

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
New content under the same name is sent if the former content is beside it under the name of a
rotated file (FILE.1, FILE-DATE, also .gz); its remaining lines are sent first.
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
    /// Send a file again that was sent in full before, or is a segment of the server; its events count again
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

/// Flags of `tallyline ready`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline ready                               is http://127.0.0.1:8000 ready now?
  tallyline ready --wait 30s && tallyline send events.jsonl

It asks /readyz, which needs no token. The health check of the container image is this command.
Exit codes: 0 ready; 1 not ready, with the reasons, or no answer.")]
pub struct ReadyArgs {
    /// Base URL of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    #[arg(env = "TALLYLINE_TO")]
    pub to: String,
    /// Maximum time to wait until the server is ready
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub wait: Span,
}
