//! `node.json`: the tokens with which this data directory has been a node of a shared database.
//!
//! Each start of a node draws a token, appends it here, and only then stores it in the database in place of the
//! one before. If the token in the database is in this file, the last process that acted as this node used this
//! data directory, or the one that it was copied from. If it is not, the directory is a copy of another that is
//! or was in use, or was restored from a backup.
//!
//! ```json
//! {"tokens": [{"epoch": 3, "token": "0b6e...", "database": "5e3f...", "system": "7312...", "confirmed": true}]}
//! ```
//!
//! The file is replaced by rename, and the directory is synced, before the database changes. It is written under
//! `process.lock`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::directory::any_active_label;
use super::disk::{self, Disk};
use super::segment::{Tag, label_in_name};
use super::{APPLIED_DIR, DataDirError, NODE_FILE};

/// The oldest tokens are dropped past this number, except the last one that each database is known to have stored.
///
/// A start adds a token, and so does a new connection after a lost one. An older token is found only in a database
/// that was set back by more than so many of these; the node is then refused, and `tallyline nodes adopt` lets it
/// continue. The file has about 200 bytes for each, and is written again for each.
const TOKENS_MAX: usize = 1_000;

/// The token of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeToken {
    /// The epoch that the token stands for.
    pub epoch: i64,
    /// Drawn at random for this epoch.
    pub token: Uuid,
    /// `cluster.id` of the database.
    pub database: Uuid,
    /// The system identifier of the PostgreSQL server; `None` if the server has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Whether the database is known to have stored the token.
    #[serde(default)]
    pub confirmed: bool,
}

/// The tokens, in the order in which they were drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTokens {
    tokens: Vec<NodeToken>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    tokens: Vec<NodeToken>,
}

impl NodeTokens {
    /// Reads the file; empty if there is none.
    pub fn read(disk: &dyn Disk, data_dir: &Path) -> Result<Self, DataDirError> {
        let path = path(data_dir);
        read(disk, &path).map_err(DataDirError::io("read", &path))
    }

    /// Whether this directory has drawn the token.
    pub fn contains(&self, token: Uuid) -> bool {
        self.tokens.iter().any(|known| known.token == token)
    }

    /// The highest epoch in any database; 0 if there is none.
    pub fn highest_epoch(&self) -> i64 {
        let epochs = self.tokens.iter().map(|token| token.epoch);
        epochs.max().unwrap_or(0)
    }

    /// The last token that this database is known to have stored.
    pub fn last_confirmed(&self, database: Uuid) -> Option<&NodeToken> {
        let mut newest_first = self.tokens.iter().rev();
        newest_first.find(|token| token.confirmed && token.database == database)
    }

    /// Appends a token, durably.
    pub fn add(
        &mut self,
        disk: &dyn Disk,
        data_dir: &Path,
        token: NodeToken,
    ) -> Result<(), DataDirError> {
        self.tokens.push(token);
        self.drop_oldest();
        self.write(disk, data_dir)
    }

    fn drop_oldest(&mut self) {
        let mut excess = self.tokens.len().saturating_sub(TOKENS_MAX);
        if excess == 0 {
            return;
        }
        // The newest of each database comes last.
        let confirmed = self.tokens.iter().filter(|token| token.confirmed);
        let last: HashMap<Uuid, Uuid> = confirmed
            .map(|token| (token.database, token.token))
            .collect();
        self.tokens.retain(|token| {
            let is_kept = excess == 0 || last.get(&token.database) == Some(&token.token);
            excess -= usize::from(!is_kept);
            is_kept
        });
    }

    /// Notes that the database has stored the last token, durably.
    pub fn confirm(&mut self, disk: &dyn Disk, data_dir: &Path) -> Result<(), DataDirError> {
        if let Some(last) = self.tokens.last_mut() {
            last.confirmed = true;
        }
        self.write(disk, data_dir)
    }

    fn write(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), DataDirError> {
        let path = path(data_dir);
        let wire = Wire {
            tokens: self.tokens.clone(),
        };
        let write = || {
            let mut text = serde_json::to_vec(&wire)?;
            text.push(b'\n');
            disk::write_over(disk, &path, |file| file.write_all_at(&text, 0))?;
            disk.sync_dir(data_dir)
        };
        write().map_err(DataDirError::io("write", &path))
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(NODE_FILE)
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<NodeTokens> {
    let file = match disk.open_read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(NodeTokens::default()),
        file => file?,
    };
    let mut text = vec![0; usize::try_from(file.size()?).unwrap_or_default()];
    let mut filled = 0;
    while filled < text.len() {
        match file.read_at(&mut text[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    let wire: Wire = serde_json::from_slice(&text[..filled]).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("malformed: {error}; restore the file from a backup, or delete it and run `tallyline nodes adopt`"),
        )
    })?;
    Ok(NodeTokens {
        tokens: wire.tokens,
    })
}

/// The tags of all native segments in the data directory and its archive, of any data directory: those in the
/// names of sealed files, and the label of `events.jsonl`.
pub(crate) fn tags_of_segments(disk: &dyn Disk, data_dir: &Path) -> Result<Vec<Tag>, DataDirError> {
    let archive = data_dir.join(APPLIED_DIR);
    let list = |dir: &Path| disk.list(dir).map_err(DataDirError::io("list", dir));
    let mut tags = Vec::new();
    let mut add = |entries: Vec<(String, bool)>| {
        let labels = entries.iter().filter_map(|(name, _)| label_in_name(name));
        tags.extend(labels.map(|label| label.tag));
    };
    add(list(data_dir)?);
    for (month, is_dir) in list(&archive)? {
        if is_dir {
            add(list(&archive.join(month))?);
        }
    }
    tags.extend(any_active_label(disk, data_dir)?.map(|label| label.tag));
    Ok(tags)
}

/// Name and path of the files in the archive that have no label: imported ones.
pub(crate) fn archived_imports(
    disk: &dyn Disk,
    data_dir: &Path,
) -> Result<BTreeMap<String, PathBuf>, DataDirError> {
    let archive = data_dir.join(APPLIED_DIR);
    let list = |dir: &Path| disk.list(dir).map_err(DataDirError::io("list", dir));
    let mut files = BTreeMap::new();
    for (month, is_dir) in list(&archive)? {
        let dir = archive.join(month);
        let entries = if is_dir { list(&dir)? } else { Vec::new() };
        for (name, is_dir) in entries {
            if !is_dir && label_in_name(&name).is_none() {
                files.insert(name.clone(), dir.join(name));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::disk::RealDisk;

    fn token(epoch: i64, database: Uuid) -> NodeToken {
        NodeToken {
            epoch,
            token: Uuid::new_v4(),
            database,
            system: Some("7".to_owned()),
            confirmed: false,
        }
    }

    #[test]
    fn the_last_stored_token_of_each_database_outlives_failed_attempts() {
        // Fails if attempts that never reach the database push out the token that it has: the node would be
        // refused as a copy of itself.
        let dir = tempfile::tempdir().expect("a directory");
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let mut tokens = NodeTokens::default();
        let mut stored = Vec::new();
        for database in [one, one, other] {
            let mut token = token(1, database);
            token.confirmed = true;
            stored.push(token.token);
            tokens.tokens.push(token);
        }
        for epoch in 2..1_200 {
            tokens.tokens.push(token(epoch, one));
        }
        tokens
            .add(&RealDisk, dir.path(), token(1_200, one))
            .expect("written");
        let found = NodeTokens::read(&RealDisk, dir.path()).expect("read");
        assert_eq!(found.tokens.len(), TOKENS_MAX);
        assert!(!found.contains(stored[0]));
        assert!(found.contains(stored[1]) && found.contains(stored[2]));
        assert_eq!(found.highest_epoch(), 1_200);
    }

    #[test]
    fn tokens_are_kept_with_all_earlier_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let mut tokens = NodeTokens::read(&RealDisk, dir.path()).expect("read");
        assert_eq!(tokens, NodeTokens::default());
        let (first, second, third) = (token(1, one), token(2, one), token(5, other));
        tokens
            .add(&RealDisk, dir.path(), first.clone())
            .expect("written");
        tokens.confirm(&RealDisk, dir.path()).expect("written");
        tokens
            .add(&RealDisk, dir.path(), second.clone())
            .expect("written");
        tokens
            .add(&RealDisk, dir.path(), third.clone())
            .expect("written");

        let found = NodeTokens::read(&RealDisk, dir.path()).expect("read");
        assert_eq!(found, tokens);
        assert!(
            [first.token, second.token, third.token]
                .iter()
                .all(|&token| found.contains(token))
        );
        assert!(!found.contains(Uuid::new_v4()));
        assert_eq!(found.highest_epoch(), 5);
        assert_eq!(found.last_confirmed(one).map(|token| token.epoch), Some(1));
        assert_eq!(found.last_confirmed(other), None);
    }

    #[test]
    fn a_malformed_file_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(NODE_FILE), "{").expect("written");
        let error = NodeTokens::read(&RealDisk, dir.path()).expect_err("malformed");
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(
            text.contains(NODE_FILE) && text.contains("nodes adopt"),
            "{text}"
        );
    }
}
