//! `tallyline backup` and `tallyline restore`: see [`crate::backup`].

use std::fmt::Write as _;

use anyhow::Context as _;
use indicatif::HumanBytes;

use super::verify;
use crate::backup;
use crate::cli::config::{BackupConfig, CheckBackup, RestoreConfig, Verbosity, VerifyConfig};
use crate::cli::exit::Exit;
use crate::cli::output::{bar, counted, print};
use crate::shutdown::Shutdown;

/// Copies the data directory and prints what the backup has.
pub fn run_backup(config: &BackupConfig) -> anyhow::Result<Exit> {
    let stop = Shutdown::on_signals_and_hangup().context("cannot catch signals")?;
    let bar = bar();
    let mut on_progress = |bytes, bytes_total| {
        bar.set_length(bytes_total);
        bar.set_position(bytes);
    };
    let manifest = backup::create(&config.data_dir, &config.dir, &stop, &mut on_progress)?;
    bar.finish_and_clear();
    if config.verbosity == Verbosity::Normal {
        let text = format!(
            "backed up {} to {}: {}, {}\n",
            config.data_dir.display(),
            config.dir.display(),
            counted(manifest.files.len() as u64, "file"),
            match &manifest.database {
                Some(database) => format!("a database of {}", HumanBytes(database.bytes)),
                None => "no database, because none exists yet".to_owned(),
            }
        );
        print(text.as_bytes())?;
    }
    match config.check {
        CheckBackup::No => Ok(Exit::Done),
        CheckBackup::Recount => verify::run(&VerifyConfig {
            database_url: None,
            data_dir: config.dir.clone(),
            verbosity: config.verbosity,
        }),
    }
}

/// Restores a backup and prints what was added.
pub fn run_restore(config: &RestoreConfig) -> anyhow::Result<Exit> {
    let bar = bar();
    let mut on_progress = |bytes, bytes_total| {
        bar.set_length(bytes_total);
        bar.set_position(bytes);
    };
    let restored = backup::restore(&config.dir, &config.data_dir, &mut on_progress)?;
    bar.finish_and_clear();
    if config.verbosity == Verbosity::Normal {
        let mut text = format!(
            "restored {} to {}: {} added, {} already present\n",
            config.dir.display(),
            config.data_dir.display(),
            counted(restored.added, "file"),
            restored.present
        );
        if let Some(database) = &restored.old_database {
            let _infallible =
                writeln!(text, "the old database was moved to {}", database.display());
        }
        text.push_str("events in the files that the database lacks are applied by `tallyline serve` or `tallyline process`\n");
        print(text.as_bytes())?;
    }
    Ok(Exit::Done)
}
