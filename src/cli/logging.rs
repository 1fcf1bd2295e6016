//! Log lines and progress bars on stderr.
//!
//! Every progress bar belongs to [`bars`], which hides the bars while a log line is written.
//! Libraries log warnings and errors only: their traces may contain a header with a token.
//!
//! # Failure
//! Logging never ends or blocks a server. Its lines go through a bounded queue to the thread `log`,
//! the only one that writes to stderr. A line is dropped if the queue is full (a pipe that is not
//! read) or if the write fails (stderr closed, or its disk full); [`lost_lines`] counts both. A tool
//! writes its lines directly and continues if a write fails.

use std::backtrace::Backtrace;
use std::io::{self, IsTerminal as _, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::args::{LogFormat, LoggingArgs};

/// Capacity of the queue for stderr. A line has some hundred bytes.
const LINES_MAX: usize = 1024;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
/// Number of lines that could not be written to stderr.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);
/// Counts lines that were dropped because the queue was full.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The progress bars on stderr; hidden if stderr is not a terminal.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Number of log lines that this process dropped: the queue was full or the write failed.
pub fn lost_lines() -> u64 {
    let dropped = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
    UNWRITTEN.load(Ordering::Relaxed) + dropped as u64
}

/// Default log level of a command, and whether its lines go through the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// A server: level `info`, through the queue.
    Service,
    /// A server that logs warnings only, through the queue.
    QuietService,
    /// A tool: warnings only, written directly.
    Tool,
}

/// The log of this process. Dropping it writes the queued lines, for at most one second.
pub struct Log {
    sink: Sink,
    /// The last field, because dropping it writes the queued lines.
    _guard: Option<WorkerGuard>,
}

impl Log {
    /// Writes a line without level and time. The line is lost if stderr cannot be written.
    pub fn line(&self, text: &str) {
        self.sink.line(text);
    }
}

/// Starts logging to stderr. The level comes from `-v` or `-q`, else from `TALLYLINE_LOG` (a level, or
/// directives such as `tallyline::journal=trace`), else from `mode`. With `-q` no bar is drawn.
pub fn start(args: &LoggingArgs, mode: LogMode) -> Log {
    if args.quiet {
        bars().set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let directives = match (args.quiet, args.verbose) {
        (true, _) => "error".to_owned(),
        (_, 1) => "warn,tallyline=debug".to_owned(),
        (_, 2..) => "warn,tallyline=trace".to_owned(),
        _ => match (std::env::var("TALLYLINE_LOG"), mode) {
            (Ok(level), _) if level.contains(['=', ',']) => level,
            (Ok(level), _) if !level.is_empty() => format!("warn,tallyline={level}"),
            (_, LogMode::Service) => "warn,tallyline=info".to_owned(),
            (_, LogMode::Tool | LogMode::QuietService) => "warn".to_owned(),
        },
    };
    let filter = filter_of(&directives);
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (sink, guard) = match mode {
        LogMode::Tool => (Sink::Direct, None),
        LogMode::Service | LogMode::QuietService => {
            let (writer, guard) = NonBlockingBuilder::default()
                .buffered_lines_limit(LINES_MAX)
                .lossy(true)
                .thread_name("log")
                .finish(Stderr);
            let _started_before = DROPPED.set(writer.error_counter());
            (Sink::Thread(writer), Some(guard))
        }
    };
    // Internal errors are not printed: `eprintln!` panics if stderr fails.
    let lines = fmt::layer()
        .log_internal_errors(false)
        .with_ansi(colour)
        .with_writer(sink.clone());
    let lines = match args.log_format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
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

/// The filter of comma-separated directives: `level` or `target=level`. Invalid ones are ignored. What
/// no directive names is logged from level `error` on.
fn filter_of(directives: &str) -> Targets {
    let mut filter = Targets::new().with_default(LevelFilter::ERROR);
    for directive in directives.split(',') {
        if let Ok(parsed) = directive.parse::<Targets>() {
            match parsed.default_level() {
                Some(level) => filter = filter.with_default(level),
                None => filter.extend(parsed),
            }
        }
    }
    filter
}

/// A panic, formatted as the standard library formats it.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    format!("thread '{name}' {panic}\n{backtrace}")
}

/// How lines reach stderr.
#[derive(Clone)]
enum Sink {
    /// Written by the thread that logs.
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

/// A line being formatted; dropping it passes it to the sink as a whole.
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
        // Neither write returns an error: failed writes are counted.
        let _counted = match &mut self.sink {
            Sink::Direct => Stderr.write_all(&self.text),
            Sink::Thread(writer) => writer.write_all(&self.text),
        };
    }
}

/// Stderr. It hides the progress bars during a write. A write that fails is counted and reported as
/// a success, because the caller could do nothing about it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_set_the_level_of_a_target_or_of_the_rest() {
        // Fails if a level, a directive or an invalid one means something else than documented.
        let logs = |directives: &str, target: &str, level: LevelFilter| {
            let level = level.into_level().expect("a level");
            filter_of(directives).would_enable(target, &level)
        };
        let (own, other) = ("tallyline::journal", "ureq::run");
        for (directives, own_level, other_level) in [
            ("error", LevelFilter::ERROR, LevelFilter::ERROR),
            (
                "warn,tallyline=debug",
                LevelFilter::DEBUG,
                LevelFilter::WARN,
            ),
            (
                "tallyline::journal=trace",
                LevelFilter::TRACE,
                LevelFilter::ERROR,
            ),
            (
                "warn,tallyline=INFO,ureq=off",
                LevelFilter::INFO,
                LevelFilter::OFF,
            ),
            ("warn,tallyline=loud", LevelFilter::WARN, LevelFilter::WARN),
        ] {
            for (target, most) in [(own, own_level), (other, other_level)] {
                for level in [
                    LevelFilter::ERROR,
                    LevelFilter::WARN,
                    LevelFilter::INFO,
                    LevelFilter::DEBUG,
                    LevelFilter::TRACE,
                ] {
                    let expected = level <= most;
                    assert_eq!(
                        logs(directives, target, level),
                        expected,
                        "{directives}: {target} {level}"
                    );
                }
            }
        }
    }
}
