//! Which database keeps the totals: one SQLite file, or a PostgreSQL that several nodes share.

use std::fmt;
use std::path::{Path, PathBuf};

use super::DATABASE_FILE;
#[cfg(feature = "postgres")]
use super::postgres::Target;

/// The database of a data directory.
#[derive(Clone, Debug)]
pub enum Database {
    /// An SQLite file, by default `revenue.db` in the data directory.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
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

    /// The path of the SQLite file; `None` for another database.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => None,
        }
    }
}

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
