//! Where each setting comes from, and the settings as TOML.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::cli::args::with_variables;
use crate::cli::config::{Size, Span, UsageError};
use crate::store::Database;

/// Picks each setting and writes it, with its source, as a line of TOML.
#[derive(Default)]
pub(super) struct Settings {
    /// The lines of the settings that were picked.
    pub(super) text: String,
    /// The settings that come from the config file.
    from_file: Vec<&'static str>,
}

impl Settings {
    pub(super) fn pick<T: TomlText>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        file: Option<T>,
        default: T,
    ) -> T {
        let (value, from) = match (flag, file) {
            (Some(value), _) => (value, "flag or environment"),
            (None, Some(value)) => {
                self.from_file.push(name);
                (value, "config file")
            }
            (None, None) => (default, "default"),
        };
        self.line(format_args!("{name} = {}", value.toml_text()), from);
        value
    }

    pub(super) fn pick_optional<T: TomlText>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        file: Option<T>,
    ) -> Option<T> {
        let (value, from) = match (flag, file) {
            (Some(value), _) => (value, "flag or environment"),
            (None, Some(value)) => {
                self.from_file.push(name);
                (value, "config file")
            }
            (None, None) => {
                self.line(format_args!("# {name} ="), "default: none");
                return None;
            }
        };
        self.line(format_args!("{name} = {}", value.toml_text()), from);
        Some(value)
    }

    /// The error with the settings of the config file at `path` named as they are there.
    pub(super) fn named_as_in(&self, path: &Path, error: &UsageError) -> UsageError {
        let names = self
            .from_file
            .iter()
            .map(|name| (format!("--{name}"), (*name).to_owned()));
        let text = with_variables(&error.to_string(), &names.collect::<Vec<_>>());
        if text == error.to_string() {
            return UsageError::new(text);
        }
        UsageError::new(format!("in the config file {}: {text}", path.display()))
    }

    fn line(&mut self, setting: fmt::Arguments<'_>, from: &str) {
        let setting = setting.to_string();
        let _infallible = writeln!(self.text, "{setting:<36} # {from}");
    }
}

/// A value in TOML syntax.
pub(super) trait TomlText {
    fn toml_text(&self) -> String;
}

impl TomlText for bool {
    fn toml_text(&self) -> String {
        self.to_string()
    }
}

impl TomlText for String {
    fn toml_text(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}

/// The value of `--database`. Its password is not shown.
pub(super) struct DatabaseText(pub(super) String);

impl TomlText for DatabaseText {
    fn toml_text(&self) -> String {
        // A value that cannot be parsed is reported, and never shown.
        let parsed = Database::parse(&self.0).ok();
        parsed
            .map_or_else(String::new, |database| database.to_string())
            .toml_text()
    }
}

impl TomlText for Uuid {
    fn toml_text(&self) -> String {
        format!("\"{self}\"")
    }
}

impl TomlText for PathBuf {
    fn toml_text(&self) -> String {
        self.to_string_lossy().into_owned().toml_text()
    }
}

impl TomlText for Span {
    fn toml_text(&self) -> String {
        self.to_string().toml_text()
    }
}

impl TomlText for Size {
    fn toml_text(&self) -> String {
        self.to_string().toml_text()
    }
}
