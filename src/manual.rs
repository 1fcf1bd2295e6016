//! What the program says of itself on stdout: completions, the manual page, the configuration.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::config::Effective;
use crate::exit::Exit;

/// `serve --check`: the configuration in force.
pub fn check(effective: &Effective) -> anyhow::Result<Exit> {
    print(effective.to_string().as_bytes())
}

/// `completions SHELL`.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tallyline", &mut script);
    print(&script)
}

/// `man`: one page, a section for every command.
pub fn page() -> anyhow::Result<Exit> {
    let mut page = Vec::new();
    render(&mut page).context("cannot render the manual page")?;
    print(&page)
}

fn render(page: &mut Vec<u8>) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(command.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    man.render_extra_section(page)?;
    for command in command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        let name = command
            .get_bin_name()
            .unwrap_or(command.get_name())
            .to_uppercase();
        writeln!(page, ".SH \"{name}\"")?;
        let man = Man::new(command.clone());
        let mut sections = Vec::new();
        man.render_synopsis_section(&mut sections)?;
        man.render_description_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        man.render_extra_section(&mut sections)?;
        // One level down: they are parts of the command's section.
        page.extend(
            String::from_utf8_lossy(&sections)
                .replace(".SH ", ".SS ")
                .bytes(),
        );
    }
    Ok(())
}

/// Writes all of it to stdout; a reader that went away (`| head`) has had what it wanted.
pub(crate) fn print(text: &[u8]) -> anyhow::Result<Exit> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(Exit::Done),
    }
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
        assert!(page.contains("rotate\\-every"));
    }
}
