//! The flags of `generate`, `completions` and `torture`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

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
