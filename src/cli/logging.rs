//! What goes to stderr: log lines and progress bars, which must not draw over each other.
//!
//! Every bar belongs to [`bars`]; a log line written while bars stand makes them step aside. Only
//! our own crate speaks below warnings: what libraries trace may hold a header with a token.
//!
//! # Failure
//! Logging never ends or blocks a server. Its lines go through a bounded queue to a thread of their
//! own, `log`, which alone waits for stderr; a line is lost when the queue is full (a pipe that
//! is not read) or when stderr cannot be written (closed, or its disk is full). [`lost_lines`]
//! counts those. A tool writes its lines itself, and goes on when that fails.

use std::backtrace::Backtrace;
use std::io::{self, IsTerminal as _, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};

use indicatif::MultiProgress;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::args::{LogFormat, LoggingArgs};

/// Lines that may wait for stderr; of some hundred bytes each.
const LINES_MAX: usize = 1024;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// Lines that stderr did not take.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);
/// Counts lines that found the queue full.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The bars on stderr; hidden where stderr is no terminal.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Log lines of this process that were not written.
pub fn lost_lines() -> u64 {
    let dropped = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
    UNWRITTEN.load(Ordering::Relaxed) + dropped as u64
}

/// How a command logs when neither `-v` nor `-q` is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A server: what it does is in its log, which must not stop it.
    Service,
    /// A server that says little: only warnings go to the log, which must not stop it.
    QuietService,
    /// A tool: its output speaks; only warnings go to the log.
    Tool,
}

/// The log of this process. Dropped, it writes out what waits, for a second at most.
pub struct Log {
    sink: Sink,
    /// Last: what waits is written when it is dropped.
    _guard: Option<WorkerGuard>,
}

impl Log {
    /// Writes a line of the caller's own. Where stderr cannot be written it is lost.
    pub fn line(&self, text: &str) {
        self.sink.line(text);
    }
}

/// Starts logging to stderr. The level: `-v`, `-q`, else `TALLYLINE_LOG` (a level, or directives
/// such as `tallyline::journal=trace`), else what the manner asks for. With `-q` no bar is drawn.
pub fn start(args: &LoggingArgs, manner: Manner) -> Log {
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
            (_, Manner::Tool | Manner::QuietService) => "warn".to_owned(),
        },
    };
    let filter = EnvFilter::builder().parse_lossy(directives);
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (sink, guard) = match manner {
        Manner::Tool => (Sink::Direct, None),
        Manner::Service | Manner::QuietService => {
            let (writer, guard) = NonBlockingBuilder::default()
                .buffered_lines_limit(LINES_MAX)
                .lossy(true)
                .thread_name("log")
                .finish(Stderr);
            let _started_before = DROPPED.set(writer.error_counter());
            (Sink::Thread(writer), Some(guard))
        }
    };
    // What cannot be logged must not be printed instead: `eprintln!` panics where stderr fails.
    let log = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(sink.clone());
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let log_format = args.log_format;
    let lines = sink.clone();
    panic::set_hook(Box::new(move |panic| match log_format {
        LogFormat::Text => lines.line(&describe(panic)),
        LogFormat::Json => tracing::error!(backtrace = %Backtrace::capture(), "{panic}"),
    }));
    Log {
        sink,
        _guard: guard,
    }
}

/// A panic as the standard library prints it.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    format!("thread '{name}' {panic}\n{backtrace}")
}

/// Where lines go.
#[derive(Clone)]
enum Sink {
    /// Written by whoever logs.
    Direct,
    /// Written by the thread `log`.
    Thread(NonBlocking),
}

impl Sink {
    fn line(&self, text: &str) {
        let _never_fails = writeln!(self.make_writer(), "{text}");
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            sink: self.clone(),
            text: Vec::with_capacity(256),
        }
    }
}

/// A line on its way: handed on whole when it is dropped.
struct Line {
    sink: Sink,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        // Neither fails: what is not written is counted.
        let _counted = match &mut self.sink {
            Sink::Direct => Stderr.write_all(&self.text),
            Sink::Thread(writer) => writer.write_all(&self.text),
        };
    }
}

/// Stderr, the bars out of the way while it is written to. It never fails: whoever logs cannot do
/// anything about it.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if bars().suspend(|| io::stderr().write_all(line)).is_err() {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // Stderr has no buffer.
    }
}
