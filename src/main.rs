//! Parse, log, dispatch, print what went wrong once, exit.

use std::process::ExitCode;

use tallyline::cli::{Cli, Command, LogFormat};
use tallyline::config::{
    BackupConfig, DemoConfig, ProcessConfig, RestoreConfig, SendConfig, ServeConfig, UsageError,
    VerifyConfig,
};
use tallyline::exit::Exit;
use tallyline::logging::{self, Manner};
use tallyline::{
    apply, backup, client, demo, generate, manual, query, serve, stop, torture, verify,
};

fn main() -> ExitCode {
    let cli = Cli::of_this_process();
    let manner = match cli.command {
        Command::Serve(_) => Manner::Service,
        Command::Demo(_) => Manner::QuietService,
        _ => Manner::Tool,
    };
    let log = logging::start(&cli.logging, manner);
    if let Err(error) = stop::outlive_file_size_limit() {
        tracing::warn!("cannot catch SIGXFSZ, so a file size limit ends the program: {error}");
    }
    let log_format = cli.logging.log_format;
    dispatch(cli)
        .unwrap_or_else(|error| {
            match log_format {
                LogFormat::Json => tracing::error!("{error:#}"),
                LogFormat::Text => log.line(&format!("error: {error:#}")),
            }
            if error.is::<UsageError>() {
                Exit::Usage
            } else {
                Exit::Failed
            }
        })
        .into()
}

fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Demo(args) => demo::run(&DemoConfig::new(args)?),
        Command::Serve(args) => {
            let check = args.check;
            if let (false, Some(path)) = (check, ServeConfig::port_file_of(&args)) {
                // Before anything can fail: who waits for the file must not find an old port.
                serve::remove_port_file(&path)?;
            }
            let effective = ServeConfig::from_args(*args)?;
            if check {
                manual::check(&effective)
            } else {
                serve::run(&effective.config)
            }
        }
        Command::Send(args) => client::run(&SendConfig::new(*args, cli.logging.quiet)?),
        Command::Process(args) => apply::run(&ProcessConfig::new(args, cli.logging.quiet)?),
        Command::Verify(args) => verify::run(&VerifyConfig::new(args, cli.logging.quiet)),
        Command::Backup(args) => backup::run_backup(&BackupConfig::new(args, cli.logging.quiet)),
        Command::Restore(args) => backup::run_restore(&RestoreConfig::new(args, cli.logging.quiet)),
        Command::Query(args) => query::run(&args.into()),
        Command::Generate(args) => generate::run(&args),
        Command::Completions(args) => manual::completions(args.shell),
        Command::Man => manual::page(),
        Command::Torture(args) => torture::run(&args.into()),
    }
}
