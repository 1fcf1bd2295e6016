//! Flags of `tallyline nodes`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Flags of `tallyline nodes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tallyline nodes --database postgres://tally@db/tally
  tallyline nodes adopt --database postgres://tally@db/tally --data-dir data
  tallyline nodes remove 3 --database postgres://tally@db/tally

The password is read from PGPASSWORD, ~/.pgpass, or a file, as with psql: see data/docs/scaling.md.")]
pub struct NodesArgs {
    #[command(subcommand)]
    #[expect(missing_docs, reason = "documented at the type")]
    pub command: Option<NodesCommand>,
    /// PostgreSQL database that the nodes share: postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "URL", global = true)]
    #[arg(env = "TALLYLINE_DATABASE", hide_env_values = true)]
    pub database: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The subcommands of `tallyline nodes`.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// Let the data directory continue as its node after it was restored from a backup or moved
    ///
    /// Another copy of the directory that is still in use can then write nothing more. Events that only
    /// the other copy has stay in the totals, and are reported as missing.
    Adopt(AdoptArgs),
    /// Remove a node whose data directory is gone for good; its totals stay
    ///
    /// What was not applied from its files is not counted. If the data directory comes back, it is refused.
    Remove(RemoveArgs),
}

/// Flags of `tallyline nodes adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Data directory of the node; no server may use it
    #[arg(long, value_name = "DIR", default_value = "data")]
    #[arg(env = "TALLYLINE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Flags of `tallyline nodes remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The node: its number, its UUID, or its name if only one node has it
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
