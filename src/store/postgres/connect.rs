//! Connects to PostgreSQL: the URL, passwords, TLS, and the meaning of errors.

use std::error::Error as _;
use std::fmt;
use std::str::FromStr as _;

use ::postgres::error::SqlState;
use ::postgres::{Client, Config, NoTls};

use crate::store::StoreError;

/// A PostgreSQL database, from the URL of `--database`.
#[derive(Clone)]
pub struct Target {
    config: Config,
    /// The URL without its password.
    shown: String,
}

impl Target {
    /// Parses a URL. The error does not contain the password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let config = Config::from_str(url).map_err(|error| error.to_string())?;
        Ok(Self {
            config,
            shown: url.to_owned(),
        })
    }

    /// Opens a connection.
    pub(in crate::store) fn connect(&self) -> Result<Client, StoreError> {
        self.config
            .connect(NoTls)
            .map_err(self.failed("connect to it"))
    }

    /// Wraps an error of the operation `doing`; one of another transaction becomes
    /// [`StoreError::Conflict`].
    pub(in crate::store) fn failed(
        &self,
        doing: &'static str,
    ) -> impl Fn(::postgres::Error) -> StoreError {
        let database = self.shown.clone();
        move |error| {
            let database = database.clone();
            let mut cause = error.to_string();
            if let Some(source) = error.source() {
                cause = format!("{cause}: {source}");
            }
            match error.code() {
                Some(&SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED) => {
                    StoreError::Conflict {
                        database,
                        doing,
                        cause,
                    }
                }
                code => StoreError::Postgres {
                    database,
                    doing,
                    cause,
                    code: code.map(|code| code.code().to_owned()),
                    cure: None,
                },
            }
        }
    }
}

/// The URL without its password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}
