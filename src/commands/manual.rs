//! `tallyline man` and `tallyline completions`: the manual page and shell completions on stdout.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::args::Cli;
use crate::cli::exit::Exit;
use crate::cli::output::print;

/// Prints the completions for a shell.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tallyline", &mut script);
    print(&script)
}

/// Runs `tallyline man`: one page with a section for each command.
pub fn page() -> anyhow::Result<Exit> {
    let mut page = Vec::new();
    render(&mut page).context("cannot render the manual page")?;
    print(&page)
}

/// The sections after those of the commands.
const LAST_SECTIONS: &str = r".SH ENVIRONMENT
.TP
\fBTALLYLINE_\fR...
A flag that is not given is read from the environment: \-\-data\-dir from TALLYLINE_DATA_DIR, and so on.
.TP
\fBTALLYLINE_TOKEN\fR
The bearer token of \fBtallyline send\fR.
.TP
\fBTALLYLINE_LOG\fR
Log level on stderr: error, warn, info, debug or trace.
.TP
\fBNO_COLOR\fR
No colours, even on a terminal.
.SH FILES
.TP
\fIdata/events.jsonl\fR
The active segment, to which the server appends.
.TP
\fIdata/events\-TIME\-NUMBER.jsonl\fR
Sealed segments that are not fully applied yet.
.TP
\fIdata/applied/\fR
Segments that are fully applied.
.TP
\fIdata/quarantine/\fR
Files and parts of files that were not applied, each with the reason.
.TP
\fIdata/revenue.db\fR
Totals, in SQLite; \fBtallyline process \-\-rebuild\fR builds it from the files.
.TP
\fIdata/directory.json\fR
The UUID of the data directory.
.TP
\fIFILE.tallyline\-state\fR
How much of FILE \fBtallyline send\fR has sent, and to which data directories.
.TP
\fImanifest.json\fR
In a backup: the list of its files, with lengths and checksums.
.TP
\fIdata/restore.json\fR
Exists while a restore is incomplete.
.SH EXIT STATUS
.TP
0
Done.
.TP
1
Failed; for \fBverify\fR: files and database differ, or some files could not be checked; for \fBprocess\fR: a file was refused or a segment is missing.
.TP
2
Invalid usage.
.TP
3
\fBsend\fR and \fBprocess\fR: done, but events were refused or lines rejected.
";

fn render(page: &mut Vec<u8>) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(with_short_usage(command.clone()));
    // No date, so that the same version gives the same page.
    let version = env!("CARGO_PKG_VERSION");
    writeln!(page, ".TH tallyline 1 \"\" \"tallyline {version}\"")?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    page.extend(after_help(&command, ".SH ").bytes());
    let mut commands: Vec<_> = command.get_subcommands().collect();
    commands.retain(|command| command.get_name() != "help");
    for command in commands {
        let name = command.get_bin_name().unwrap_or(command.get_name());
        writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
        let man = Man::new(with_short_usage(without_global_options(command.clone())));
        let mut sections = Vec::new();
        man.render_description_section(&mut sections)?;
        man.render_synopsis_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        // The sections of a command are one level down. The first one needs no heading.
        let sections = String::from_utf8_lossy(&sections)
            .replace(".SH DESCRIPTION\n", "")
            .replace(".SH ", ".SS ");
        page.extend(sections.bytes());
        page.extend(after_help(command, ".SS ").bytes());
    }
    page.extend(LAST_SECTIONS.bytes());
    Ok(())
}

/// Shows the usage as `tallyline serve [OPTIONS]` instead of listing all options.
fn with_short_usage(mut command: Command) -> Command {
    let usage = command.render_usage().to_string();
    command.override_usage(usage.trim_start_matches("Usage: ").to_owned())
}

/// Hides the options that every command has; they are described once, at the top.
fn without_global_options(command: Command) -> Command {
    command.mut_args(|arg| {
        let everywhere =
            arg.is_global_set() || ["help", "version"].contains(&arg.get_id().as_str());
        arg.hide(everywhere)
    })
}

/// Examples as preformatted blocks, and the text after them line by line.
fn after_help(command: &Command, heading: &str) -> String {
    let text = command.get_after_help().map(ToString::to_string);
    let mut out = String::new();
    for line in text.unwrap_or_default().lines() {
        let roff = line.replace('\\', "\\e").replace('-', "\\-");
        match roff.strip_prefix("  ") {
            _ if line == "Examples:" => out.extend([heading, "EXAMPLES\n"]),
            Some(example) => out.extend([".nf\n", example, "\n.fi\n"]),
            None if roff.is_empty() => out.push_str(".PP\n"),
            None => out.extend([roff.as_str(), "\n.br\n"]),
        }
    }
    // Consecutive examples form one block, and a paragraph break ends a line.
    let out = out.replace(".fi\n.nf\n", "").replace(".br\n.PP", ".PP");
    out.strip_suffix(".br\n").unwrap_or(&out).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_section_for_every_command() {
        let mut page = Vec::new();
        render(&mut page).expect("renders");
        let page = String::from_utf8(page).expect("text");
        for command in Cli::command().get_subcommands() {
            let heading = format!(".SH \"TALLYLINE {}\"", command.get_name().to_uppercase());
            assert!(page.contains(&heading), "{heading}");
        }
        assert!(page.contains("rotate\\-interval") && page.contains("TALLYLINE_ROTATE_INTERVAL"));
        assert_eq!(page.matches("log\\-format").count(), 1, "described once");
        assert!(!page.contains("EXTRA"));
        for section in ["EXAMPLES", "ENVIRONMENT", "FILES", "EXIT STATUS"] {
            assert!(page.contains(&format!("\n.SH {section}\n")), "{section}");
        }
    }
}
