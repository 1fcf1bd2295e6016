//! Parses the command line, starts the log, runs the command, prints an error once, and exits.

use std::process::ExitCode;

use tallyline::cli::args::{Cli, Command, LogFormat, with_variables};
use tallyline::cli::config::{
    BackupConfig, DemoConfig, ProcessConfig, QueryConfig, ReadyConfig, RejectedConfig,
    RestoreConfig, SendConfig, UsageError, VerifyConfig,
};
use tallyline::cli::exit::Exit;
use tallyline::cli::logging::{self, LogMode};
use tallyline::commands::{
    backup, demo, generate, manual, process, query, ready, rejected, send, serve, torture, verify,
};
use tallyline::shutdown;

fn main() -> ExitCode {
    let cli = Cli::of_this_process();
    let mode = match cli.command {
        Command::Serve(_) => LogMode::Service,
        Command::Demo(_) => LogMode::QuietService,
        _ => LogMode::Tool,
    };
    let log = logging::start(&cli.logging, mode);
    if let Err(error) = shutdown::outlive_file_size_limit() {
        tracing::warn!("cannot catch SIGXFSZ, so a file size limit ends the program: {error}");
    }
    if cli.shows_password {
        tracing::warn!(
            "the password in --database can be read by other users in the list of processes; put it into PGPASSWORD, into ~/.pgpass (chmod 600) or into a file named by the parameter password_file"
        );
    }
    let log_format = cli.logging.log_format;
    let variables = cli.variables.clone();
    dispatch(cli)
        .unwrap_or_else(|error| {
            let (text, exit) = if error.is::<UsageError>() {
                (with_variables(&error.to_string(), &variables), Exit::Usage)
            } else {
                (format!("{error:#}"), Exit::Failed)
            };
            match log_format {
                LogFormat::Json => tracing::error!("{text}"),
                LogFormat::Text => log.line(&format!("error: {text}")),
            }
            exit
        })
        .into()
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let quiet = cli.logging.quiet;
    match cli.command {
        Command::Demo(args) => demo::run(&DemoConfig::new(args)?),
        Command::Serve(args) => serve::run(*args),
        Command::Send(args) => send::run(&SendConfig::new(*args, quiet)?),
        Command::Ready(args) => ready::run(&ReadyConfig::new(&args, quiet)?),
        Command::Process(args) => process::run(&ProcessConfig::new(args, quiet)?),
        Command::Verify(args) => verify::run(&VerifyConfig::new(args, quiet)?),
        Command::Backup(args) => backup::run_backup(&BackupConfig::new(args, quiet)?),
        Command::Restore(args) => backup::run_restore(&RestoreConfig::new(args, quiet)?),
        Command::Query(args) => query::run(&QueryConfig::new(args)?),
        Command::Rejected(args) => rejected::run(&RejectedConfig::new(args)?),
        #[cfg(feature = "postgres")]
        Command::Nodes(args) => tallyline::commands::nodes::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Completions(args) => manual::completions(args.shell),
        Command::Man => manual::page(),
        Command::Torture(args) => torture::run(&args.into()),
    }
}
