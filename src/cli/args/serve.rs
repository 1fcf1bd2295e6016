//! The flags of `demo` and `serve`.

use std::path::PathBuf;

use clap::Args;
use uuid::Uuid;

use crate::cli::{Size, Span};

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
Flags override environment variables (TALLYLINE_ROTATE_INTERVAL), which override the config file.

Exit codes: 0 stopped by SIGTERM or SIGINT, everything sealed and applied; 1 failed to start, or stopped
before everything was sealed and applied, which the next start does; 2 usage.")]
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

    /// With --database: how far a failover may set the database back; --retention is at least that long [default: 1h]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_FAILOVER_WINDOW")]
    #[arg(help_heading = "Files and disk")]
    pub failover_window: Option<Span>,

    /// PostgreSQL database with the totals, instead of revenue.db in the data directory: a URL such as
    /// postgres://user@host/database; several servers may share it
    #[arg(
        long,
        value_name = "URL",
        env = "TALLYLINE_DATABASE",
        hide_env_values = true
    )]
    #[arg(help_heading = "Processing")]
    pub database: Option<String>,
    /// Maximum delay between acknowledgement and totals, at most 1day; shorter under load [default: 1s]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_FLUSH_INTERVAL")]
    #[arg(help_heading = "Processing")]
    pub flush_interval: Option<Span>,
    /// Deduplication window: how long the ids of applied events are kept [default: forever]
    #[arg(long, value_name = "DURATION", env = "TALLYLINE_DEDUP_WINDOW")]
    #[arg(help_heading = "Processing")]
    pub dedup_window: Option<Span>,
    /// Maximum memory of the processor [default: an eighth of the memory of the machine or of the control
    /// group, 64MiB to 1GiB]. Sums that do not fit are written to temporary files in the data directory
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
