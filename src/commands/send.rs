//! `tallyline send`: sends a file or stdin to a server and prints a summary.

use anyhow::Context as _;

use crate::cli::config::{Report, SendConfig, UsageError};
use crate::cli::exit::Exit;
use crate::cli::output::{counted, print};
use crate::client::{SendError, SendOutcome, send};
use crate::shutdown::Shutdown;

/// Sends the input and prints the summary. A failure is returned as an error as well.
pub fn run(config: &SendConfig) -> anyhow::Result<Exit> {
    let stop = Shutdown::on_signals_and_hangup().context("cannot catch signals")?;
    let summary = send(config, &stop);
    let text = match config.report {
        Report::Json => format!("{}\n", summary.to_json()),
        Report::Quiet if summary.exit() == Exit::Done => String::new(),
        Report::Text | Report::Quiet => format!("{summary}\n"),
    };
    let printed = print(text.as_bytes());
    let exit = summary.exit();
    match summary.verdict {
        SendOutcome::Failed(
            error @ (SendError::SentBefore(_)
            | SendError::Edited { .. }
            | SendError::OwnSegment { .. }),
        ) => Err(UsageError::new(error.to_string()).into()),
        SendOutcome::Failed(error) => Err(error.into()),
        SendOutcome::Complete => {
            let lines = counted(summary.lines, "line");
            printed.with_context(|| {
                format!("{lines} sent and acknowledged; do not send the input again. However")
            })?;
            Ok(exit)
        }
        SendOutcome::Stopped | SendOutcome::Followed => printed.map(|_| exit),
    }
}
