//! `tallyline backup` and `tallyline restore`: see [`crate::backup`].

use std::fmt::Write as _;

use anyhow::Context as _;
use indicatif::HumanBytes;

use super::verify;
use crate::backup;
use crate::cli::config::{BackupConfig, CheckBackup, RestoreConfig, Say, VerifyConfig};
use crate::cli::exit::Exit;
use crate::cli::output::{bar, counted, print};
use crate::shutdown::Shutdown;

/// `tallyline backup`.
pub fn run_backup(config: &BackupConfig) -> anyhow::Result<Exit> {
    let stop = Shutdown::on_signals().context("cannot catch SIGINT and SIGTERM")?;
    let bar = bar();
    let mut on_progress = |bytes, bytes_total| {
        bar.set_length(bytes_total);
        bar.set_position(bytes);
    };
    let manifest = backup::create(&config.data_dir, &config.dir, &stop, &mut on_progress)?;
    bar.finish_and_clear();
    if config.say == Say::All {
        let words = format!(
            "backed up {} to {}: {}, {}\n",
            config.data_dir.display(),
            config.dir.display(),
            counted(manifest.files.len() as u64, "file"),
            match &manifest.database {
                Some(database) => format!("a database of {}", HumanBytes(database.bytes)),
                None => "no database, because there is none yet".to_owned(),
            }
        );
        print(words.as_bytes())?;
    }
    match config.check {
        CheckBackup::No => Ok(Exit::Done),
        CheckBackup::Recount => verify::run(&VerifyConfig {
            data_dir: config.dir.clone(),
            say: config.say,
        }),
    }
}

/// `tallyline restore`.
pub fn run_restore(config: &RestoreConfig) -> anyhow::Result<Exit> {
    let bar = bar();
    let mut on_progress = |bytes, bytes_total| {
        bar.set_length(bytes_total);
        bar.set_position(bytes);
    };
    let restored = backup::restore(&config.dir, &config.data_dir, &mut on_progress)?;
    bar.finish_and_clear();
    if config.say == Say::All {
        let mut words = format!(
            "restored {} to {}: {} added, {} there already\n",
            config.dir.display(),
            config.data_dir.display(),
            counted(restored.added, "file"),
            restored.present
        );
        if let Some(database) = &restored.old_database {
            let _infallible = writeln!(words, "the old database is {}", database.display());
        }
        words.push_str("what the files hold beyond the database is applied by `tallyline serve` or `tallyline process`\n");
        print(words.as_bytes())?;
    }
    Ok(Exit::Done)
}
