//! `tallyline query`: shows totals from the database. The server need not run.
//!
//! It reads through [`Readers`](crate::store::Readers) and changes nothing; closing the last connection removes the `-wal`
//! file.

mod format;
#[cfg(test)]
mod tests;
mod totals;

use anyhow::bail;

use self::format::{Shown, csv, json, json_overall, table, table_overall};
use self::totals::Totals;
pub(super) use self::totals::open_database;
use crate::backup;
use crate::cli::config::{QueryConfig, QueryFormat};
use crate::cli::exit::Exit;
use crate::store::{Listing, Order};

/// Prints the totals. A user without applied events is reported on stderr, with exit code 1.
pub fn run(config: &QueryConfig) -> anyhow::Result<Exit> {
    backup::refuse_unfinished(&config.data_dir)?;
    let totals = &open_database(&config.data_dir, config.database_url.as_ref())?;
    let exit = if config.users.is_empty() {
        overall_totals(totals, config)
    } else {
        some_users(totals, config)
    };
    totals.readers.close();
    exit
}

fn overall_totals(totals: &Totals, config: &QueryConfig) -> anyhow::Result<Exit> {
    let readers = &totals.readers;
    // A page has at least one user, also for --top 0.
    let page = readers.users(&Listing::first(Order::RevenueDescending, config.top.max(1)))?;
    let mut users = page.map(|page| page.users).unwrap_or_default();
    users.truncate(config.top as usize);
    let text = match config.format {
        QueryFormat::Csv => csv(&users)?,
        QueryFormat::Json => {
            let pending = totals.unapplied(&config.data_dir)?;
            json_overall(&readers.overall()?, readers.ledger()?, &pending, &users)?
        }
        QueryFormat::Table => {
            let pending = totals.unapplied(&config.data_dir)?;
            table_overall(&readers.overall()?, readers.ledger()?, &pending, &users)
        }
    };
    crate::cli::output::print(text.as_bytes())
}

fn some_users(totals: &Totals, config: &QueryConfig) -> anyhow::Result<Exit> {
    let mut users = Vec::new();
    let mut unknown = Vec::new();
    for user_id in &config.users {
        match totals.readers.user(user_id)? {
            Some(user) => users.push(user),
            None => unknown.push(format!("{user_id:?}")),
        }
    }
    if !users.is_empty() || config.format != QueryFormat::Table {
        let text = match config.format {
            QueryFormat::Csv => csv(&users)?,
            QueryFormat::Json => json(&users.iter().map(Shown::of).collect::<Vec<_>>())?,
            QueryFormat::Table => table(&users),
        };
        crate::cli::output::print(text.as_bytes())?;
    }
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        let pending = totals.unapplied(&config.data_dir)?;
        if pending.bytes > 0 {
            bail!("no events of {unknown} were applied; {pending}");
        }
        bail!("no events of {unknown} were applied");
    }
    Ok(Exit::Done)
}
