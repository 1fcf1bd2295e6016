//! Which database keeps the totals: one SQLite file, or a PostgreSQL that several nodes share.

use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::checks::Checks;
#[cfg(feature = "postgres")]
use super::postgres::{self, Target};
use super::recovery::RecoveryRows;
use super::{DATABASE_FILE, StoreError, read_checks, read_directory, read_for_recovery};

/// The database of a data directory.
#[derive(Clone, Debug)]
pub enum Database {
    /// An SQLite file, by default `revenue.db` in the data directory.
    Sqlite(PathBuf),
    /// A PostgreSQL database, which several nodes may share.
    #[cfg(feature = "postgres")]
    Postgres(Target),
}

impl Database {
    /// The default: the SQLite file of a data directory.
    pub fn in_dir(data_dir: &Path) -> Self {
        Self::Sqlite(data_dir.join(DATABASE_FILE))
    }

    /// Parses the value of `--database`. The error says what is wrong and what would be valid; it does not
    /// contain the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
            return Err(
                "it must be a URL such as postgres://USER@HOST/DATABASE; without it, the totals are kept in revenue.db in the data directory"
                    .to_owned(),
            );
        }
        #[cfg(feature = "postgres")]
        return Target::parse(text).map(Self::Postgres);
        #[cfg(not(feature = "postgres"))]
        Err(
            "this program was built without PostgreSQL; build it with the Cargo feature `postgres`"
                .to_owned(),
        )
    }

    /// The UUID of the data directory that an SQLite file belongs to; `None` if there is no file, or if it has
    /// no UUID yet. A PostgreSQL database may be shared by several directories.
    pub fn directory(&self) -> Result<Option<Uuid>, StoreError> {
        match self {
            Self::Sqlite(path) => read_directory(path),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => Ok(None),
        }
    }

    /// The rows of a data directory that are not fully applied, and those of `numbers`. The database may be
    /// missing, empty or in use.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite does not need it")
    )]
    pub fn read_for_recovery(
        &self,
        directory: Option<Uuid>,
        numbers: &[u64],
    ) -> Result<RecoveryRows, StoreError> {
        match self {
            Self::Sqlite(path) => read_for_recovery(path, numbers),
            #[cfg(feature = "postgres")]
            Self::Postgres(target) => match directory {
                Some(directory) => postgres::read_for_recovery(target, directory, numbers),
                None => Ok(RecoveryRows::default()),
            },
        }
    }

    /// Reads the sums that must agree; `None` if there is no database. They differ if another program changed
    /// it, or if it is mixed from two copies.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(unused_variables, reason = "SQLite does not need it")
    )]
    pub fn read_checks(&self, directory: Uuid) -> Result<Option<Checks>, StoreError> {
        match self {
            Self::Sqlite(path) => read_checks(path),
            #[cfg(feature = "postgres")]
            Self::Postgres(target) => postgres::read_checks(target, directory),
        }
    }

    /// Whether the value of `--database` contains a password.
    pub fn has_password(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Self::Postgres(target) => target.has_password(),
        }
    }

    /// The path of the SQLite file; `None` for another database.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => None,
        }
    }
}

/// Two databases are the same if they have the same path or URL.
impl PartialEq for Database {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Database {}

/// The path of the file, or the URL without its password.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            #[cfg(feature = "postgres")]
            Self::Postgres(target) => target.fmt(f),
        }
    }
}
