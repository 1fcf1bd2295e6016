//! Text and progress bars that all commands print in the same way.

use std::io::{self, Write as _};

use anyhow::Context as _;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use super::exit::Exit;
use super::logging;

/// A count with its noun: `1 event`, `20,000 events`.
pub(crate) fn counted(count: u64, one: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {one}{plural}", HumanCount(count))
}

/// Writes `text` to stdout. A closed pipe (`| head`) is not an error.
pub(crate) fn print(text: &[u8]) -> anyhow::Result<Exit> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(Exit::Done),
    }
}

/// A progress bar over bytes, with room for a message.
pub(crate) fn bar() -> ProgressBar {
    let style = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left  {msg}";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    logging::bars().add(ProgressBar::new(0).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        let words = [0, 1, 2, 20_000].map(|count| counted(count, "event"));
        assert_eq!(words, ["0 events", "1 event", "2 events", "20,000 events"]);
    }
}
