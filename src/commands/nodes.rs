//! `tallyline nodes`: lists the nodes that share a PostgreSQL database, adopts one and removes one.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::HumanCount;

use crate::cli::args::{AdoptArgs, NodesArgs, NodesCommand, RemoveArgs};
use crate::cli::config::UsageError;
use crate::cli::exit::Exit;
use crate::cli::output::{counted, print};
use crate::data_dir::disk::{Lock, RealDisk};
use crate::data_dir::{Directory, PROCESS_LOCK};
use crate::http::NodeJson;
use crate::store::Member;
use crate::store::postgres::{Node, Target, ensure_tables, members, remove};

/// Lists the nodes, or removes one after a confirmation.
pub fn run(args: &NodesArgs) -> anyhow::Result<Exit> {
    let Some(url) = &args.database else {
        return Err(UsageError::new(
            "--database is missing: nodes share a PostgreSQL database, such as postgres://USER@HOST/DATABASE",
        )
        .into());
    };
    let target =
        Target::parse(url).map_err(|error| UsageError::new(format!("--database: {error}")))?;
    match &args.command {
        None => list(&target, args.json),
        Some(NodesCommand::Adopt(args)) => adopt(&target, args),
        Some(NodesCommand::Remove(args)) => remove_one(&target, args),
    }
}

fn list(target: &Target, json: bool) -> anyhow::Result<Exit> {
    let members = members(&mut target.connect()?, target)?;
    if json {
        let shown: Vec<_> = members.iter().map(NodeJson::of).collect();
        let mut text = serde_json::to_vec_pretty(&shown)?;
        text.push(b'\n');
        return print(&text);
    }
    if members.is_empty() {
        return print(b"no nodes yet; start one with `tallyline serve --database` and this URL\n");
    }
    print(table(&members).as_bytes())
}

fn table(members: &[Member]) -> String {
    let header = [
        "node", "name", "state", "seen", "lag", "pending", "applied", "id",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    for member in members {
        let report = member.report.as_ref();
        rows.push([
            member.number.to_string(),
            member.name.clone(),
            member.state().name().replace('_', " "),
            report.map_or("never".to_owned(), |last| {
                format!("{} ago", short(last.age_ms))
            }),
            report.map_or(String::new(), |last| short(last.report.lag_ms)),
            report.map_or(String::new(), |last| {
                HumanCount(last.report.pending_lines).to_string()
            }),
            HumanCount(member.applied).to_string(),
            member.id.to_string(),
        ]);
    }
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |row: &[String; 8]| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A duration with one or two units: `3s`, `2m 5s`.
fn short(ms: u64) -> String {
    let rounded = if ms < 1000 { ms } else { ms / 1000 * 1000 };
    let text = humantime::format_duration(Duration::from_millis(rounded)).to_string();
    let units: Vec<&str> = text.split(' ').take(2).collect();
    units.join(" ")
}

fn adopt(target: &Target, args: &AdoptArgs) -> anyhow::Result<Exit> {
    let dir = &args.data_dir;
    let Some(directory) = Directory::read(&RealDisk, dir)
        .with_context(|| format!("cannot read the directory.json of {}", dir.display()))?
    else {
        bail!(
            "cannot adopt {}: it is not a data directory of tallyline, because it has no directory.json",
            dir.display()
        );
    };
    let _lock = Lock::take(&dir.join(PROCESS_LOCK))?;
    let mut client = target.connect()?;
    ensure_tables(&mut client, target)?;
    let members = members(&mut client, target)?;
    let what = match members.iter().find(|member| member.id == directory.id) {
        Some(member) => format!(
            "{} of {target}. Another copy of the directory that is still in use can write nothing more",
            describe(member)
        ),
        None => format!("a new node of {target}, which does not know this directory"),
    };
    confirm(args.yes, &format!("{} becomes {what}.", dir.display()))?;
    let node = Node::adopt(&mut client, target, dir, directory.id)?;
    print(format!("adopted: {} is node {}\n", dir.display(), node.number).as_bytes())
}

fn remove_one(target: &Target, args: &RemoveArgs) -> anyhow::Result<Exit> {
    let mut client = target.connect()?;
    let members = members(&mut client, target)?;
    let found: Vec<&Member> = members
        .iter()
        .filter(|member| {
            args.node == member.number.to_string()
                || args.node == member.id.to_string()
                || args.node == member.name
        })
        .collect();
    let member = match found[..] {
        [member] => member,
        [] => bail!(
            "{target} has no node {:?}; `tallyline nodes` lists them",
            args.node
        ),
        _ => bail!("several nodes are called {:?}; give the number", args.node),
    };
    if member.is_removed {
        return print(format!("{} was removed before\n", describe(member)).as_bytes());
    }
    let unknown = match &member.report {
        Some(last) if last.report.pending_lines > 0 => format!(
            "When it last reported, {} ago, {} of its files were not applied; their events, and any that it accepted since, are not counted",
            short(last.age_ms),
            counted(last.report.pending_lines, "line")
        ),
        Some(last) => format!(
            "When it last reported, {} ago, all of its files were applied; events that it accepted since are not counted",
            short(last.age_ms)
        ),
        None => {
            "It has never reported what it has not applied; those events are not counted".to_owned()
        }
    };
    confirm(
        args.yes,
        &format!(
            "{} is removed for good from {target}. The totals keep its {}, and its ids stay known. {unknown}. If its data directory comes back, it is refused.",
            describe(member),
            counted(member.applied, "counted event")
        ),
    )?;
    if remove(&mut client, target, member.number)? {
        print(format!("removed {}\n", describe(member)).as_bytes())
    } else {
        bail!("{} was removed by someone else meanwhile", describe(member))
    }
}

fn describe(member: &Member) -> String {
    format!("node {} ({}, {})", member.number, member.name, member.id)
}

/// Asks on the terminal. Fails if the answer is not yes, or if there is no terminal.
fn confirm(yes: bool, what: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(UsageError::new(format!("{what} Run it with --yes to do so")).into());
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{what}\nGo on? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        bail!("nothing was changed")
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn a_duration_has_at_most_two_units() {
        let texts = [0, 250, 3_999, 125_000, 90_061_000].map(short);
        assert_eq!(texts, ["0s", "250ms", "3s", "2m 5s", "1day 1h"]);
    }
}
