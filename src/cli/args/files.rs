//! The flags of the commands that work on the files of a data directory.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use crate::cli::Size;
use crate::data_dir::node_position::NodePosition;

/// Flags of `tallyline process`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline process                             apply all unapplied files of data/
  tallyline process --data-dir /var/lib/tallyline
  tallyline process backup/events_1700000000000.jsonl     copy the file in, then apply it
  tallyline process march.json april.jsonl.gz   convert JSON arrays and gzip, then apply
  tallyline process --rebuild                   build a new database from all files

Exit codes: 0 all applied; 1 failed, or a file was refused or a segment is missing; 3 applied, but some lines were rejected, an entry was skipped, or a file is a fork of a segment.")]
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
    /// PostgreSQL database with the totals, instead of revenue.db in the data directory: a URL such as
    /// postgres://user@host/database; several servers may share it
    #[arg(
        long,
        value_name = "URL",
        env = "TALLYLINE_DATABASE",
        hide_env_values = true
    )]
    pub database: Option<String>,
    /// Build a new database from all files of the data directory; the server must be stopped
    #[arg(long)]
    pub rebuild: bool,
    /// Maximum memory [default: an eighth of the memory of the machine or of the control group, 64MiB to
    /// 1GiB]. Sums that do not fit are written to temporary files in the data directory
    #[arg(long, value_name = "SIZE", env = "TALLYLINE_MEMORY")]
    pub memory: Option<Size>,
}

/// Where the totals are that a command reads.
#[derive(Debug, Args)]
pub struct TotalsArgs {
    /// Data directory
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// PostgreSQL database with the totals, instead of revenue.db in the data directory: a URL such as
    /// postgres://user@host/database; several servers may share it
    #[arg(
        long,
        value_name = "URL",
        env = "TALLYLINE_DATABASE",
        hide_env_values = true
    )]
    pub database: Option<String>,
}

/// Flags of `tallyline verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline verify
  tallyline verify --data-dir /var/lib/tallyline     the server may be running

Exit codes: 0 files and database agree; 1 they differ, or some files could not be checked.")]
pub struct VerifyArgs {
    #[command(flatten)]
    pub totals: TotalsArgs,
}

/// A flag of all commands that read totals, which `backup` and `restore` refuse with an explanation.
#[derive(Debug, Args)]
pub struct RefusedDatabase {
    /// PostgreSQL is backed up and restored with its own programs
    #[arg(
        long = "database",
        value_name = "URL",
        env = "TALLYLINE_DATABASE",
        hide = true,
        hide_env_values = true
    )]
    pub url: Option<String>,
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
    #[command(flatten)]
    pub database: RefusedDatabase,
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
    #[command(flatten)]
    pub database: RefusedDatabase,
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
    #[command(flatten)]
    pub totals: TotalsArgs,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV: one user a row, with a header row
    #[arg(long)]
    pub csv: bool,
}

/// Flags of `tallyline rejected`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline rejected                        the 20 newest rejected lines, each with its reason
  tallyline rejected --limit 1000 --csv > rejected.csv
  tallyline rejected --json | jq -r .rejected[].line      the lines alone

A line is rejected when it is applied: it is not an event, its id belongs to another event, or its
user's total would overflow. Of each segment the first 10,000 rejected lines are kept, and 1 KiB of
each line. The server need not run.")]
pub struct RejectedArgs {
    /// Maximum number of lines to show, newest first
    #[arg(long, value_name = "N", default_value = "20")]
    pub limit: NonZeroU32,
    /// Only lines of native segments, at or after this position
    #[arg(long, value_name = "POSITION")]
    pub since: Option<NodePosition>,
    /// Only events whose id begins with this text
    #[arg(long, value_name = "TEXT")]
    pub id_prefix: Option<String>,
    #[command(flatten)]
    pub totals: TotalsArgs,
    /// Print JSON, as GET /rejected does
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV: one line a row, with a header row
    #[arg(long)]
    pub csv: bool,
}
