//! Parse, log, dispatch, print what went wrong once, exit.

use std::io::Write as _;
use std::process::ExitCode;

use tallyline::cli::{Cli, Command, LogFormat};
use tallyline::config::{
    DemoConfig, ProcessConfig, SendConfig, ServeConfig, UsageError, VerifyConfig,
};
use tallyline::exit::Exit;
use tallyline::logging::{self, Manner};
use tallyline::{apply, client, demo, generate, manual, query, serve, torture, verify};

fn main() -> ExitCode {
    let cli = Cli::of_this_process();
    let manner = match cli.command {
        Command::Serve(_) => Manner::Service,
        _ => Manner::Tool,
    };
    logging::start(&cli.logging, manner);
    let log_format = cli.logging.log_format;
    dispatch(cli)
        .unwrap_or_else(|error| {
            match log_format {
                LogFormat::Json => tracing::error!("{error:#}"),
                LogFormat::Text => {
                    // Nobody is left to tell if stderr is gone.
                    let _gone = writeln!(std::io::stderr(), "error: {error:#}");
                }
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
        Command::Query(args) => query::run(&args.into()),
        Command::Generate(args) => generate::run(&args),
        Command::Completions(args) => manual::completions(args.shell),
        Command::Man => manual::page(),
        Command::Torture(args) => torture::run(&args.into()),
    }
}
