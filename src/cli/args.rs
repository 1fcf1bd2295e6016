//! The command line: flags only.
//!
//! [`config`](crate::cli::config) checks the flags against each other, applies bounds and fills in
//! defaults. A flag that is not given is read from the environment (`TALLYLINE_` and the flag's
//! name), then, for `serve`, from the config file.

mod errors;
mod files;
#[cfg(feature = "postgres")]
mod nodes;
mod send;
mod serve;
mod tools;

use std::ffi::OsString;

use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};

pub(crate) use self::errors::renamed;
pub use self::errors::with_variables;
pub use self::files::{
    BackupArgs, ProcessArgs, QueryArgs, RejectedArgs, RestoreArgs, TotalsArgs, VerifyArgs,
};
#[cfg(feature = "postgres")]
pub use self::nodes::{AdoptArgs, NodesArgs, NodesCommand, RemoveArgs};
pub use self::send::{ReadyArgs, SendArgs};
pub use self::serve::{DemoArgs, ServeArgs};
pub use self::tools::{CompletionsArgs, GenerateArgs, TortureArgs};

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
    /// The flags whose values come from the environment: the flag and its variable.
    #[arg(skip)]
    pub variables: Vec<(String, String)>,
    /// Whether the command line contains the password of a database, which other users can read there.
    #[arg(skip)]
    pub shows_password: bool,
}

impl Cli {
    /// Parses the command line of this process. On `--help`, or if it is invalid, this prints the
    /// help or the error and exits.
    pub fn of_this_process() -> Self {
        let command_line: Vec<OsString> = std::env::args_os().collect();
        if let Some(error) = errors::renamed_variable() {
            error.exit();
        }
        let parsed = Self::command().try_get_matches_from(&command_line);
        let parsed = parsed.and_then(|matches| {
            let mut cli = Self::from_arg_matches(&matches)?;
            cli.variables = errors::variables_in_use(&matches);
            cli.shows_password = command_line.iter().any(errors::has_password);
            Ok(cli)
        });
        parsed.unwrap_or_else(|error| errors::reworded(error, &command_line).exit())
    }
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
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// One variant a subcommand, with its flags.
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
    /// Check whether a server is ready, or wait until it is
    Ready(ReadyArgs),
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
    /// List the nodes that share a PostgreSQL database, adopt one or remove one
    #[cfg(feature = "postgres")]
    Nodes(NodesArgs),
    /// Show the lines that were not counted, and why
    Rejected(RejectedArgs),
    /// Write generated events to stdout
    Generate(GenerateArgs),
    /// Write a shell completion script to stdout
    Completions(CompletionsArgs),
    /// Write the manual page (roff) to stdout
    Man,
    /// Kill a real server with SIGKILL at random moments and check that no event is lost or counted twice
    Torture(TortureArgs),
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
