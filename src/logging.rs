//! What goes to stderr: log lines and progress bars, which must not draw over each other.
//!
//! Every bar belongs to [`bars`]; a log line written while bars stand makes them step aside. Only
//! our own crate speaks below warnings: what libraries trace may hold a header with a token.

use std::backtrace::Backtrace;
use std::io::{self, IsTerminal as _, Write};
use std::panic;
use std::sync::LazyLock;

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::{LogFormat, LoggingArgs};

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The bars on stderr; hidden where stderr is no terminal.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// How much a command says of itself when neither `-v` nor `-q` is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A server: what it does is in its log.
    Service,
    /// A tool: its output speaks; only warnings go to the log.
    Tool,
}

/// Starts logging to stderr. The level: `-v`, `-q`, else `TALLYLINE_LOG` (a level, or directives
/// such as `tallyline::journal=trace`), else what the manner asks for. With `-q` no bar is drawn.
pub fn start(args: &LoggingArgs, manner: Manner) {
    if args.quiet {
        bars().set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let directives = match (args.quiet, args.verbose) {
        (true, _) => "error".to_owned(),
        (_, 1) => "warn,tallyline=debug".to_owned(),
        (_, 2..) => "warn,tallyline=trace".to_owned(),
        _ => match (std::env::var("TALLYLINE_LOG"), manner) {
            (Ok(level), _) if level.contains(['=', ',']) => level,
            (Ok(level), _) if !level.is_empty() => format!("warn,tallyline={level}"),
            (_, Manner::Service) => "warn,tallyline=info".to_owned(),
            (_, Manner::Tool) => "warn".to_owned(),
        },
    };
    let filter = EnvFilter::builder().parse_lossy(directives);
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(Stderr);
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let log_format = args.log_format;
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match log_format {
        LogFormat::Text => print(panic),
        LogFormat::Json => tracing::error!(backtrace = %Backtrace::capture(), "{panic}"),
    }));
}

/// Stderr, the bars out of the way while it is written to.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}
