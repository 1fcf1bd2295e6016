//! Where the password of a connection comes from, in the order of libpq: the URL, PGPASSWORD, a file.
//!
//! The files are read for each connection, so a changed password applies without a restart.

use std::path::{Path, PathBuf};

use super::Environment;
use super::url::Url;
use crate::data_dir::disk;

/// The password for a URL; `None` if there is none, which suffices where the server trusts the user.
pub(super) fn password(url: &Url, environment: Environment<'_>) -> Result<Option<Vec<u8>>, String> {
    if let Some(password) = url.config.get_password() {
        return Ok(Some(password.to_vec()));
    }
    if let Some(path) = &url.password_file {
        return from_password_file(path).map(Some);
    }
    if let Some(password) = environment("PGPASSWORD").filter(|password| !password.is_empty()) {
        return Ok(Some(password.into_bytes()));
    }
    let named = url
        .passfile
        .clone()
        .or_else(|| environment("PGPASSFILE").map(PathBuf::from));
    let default = || environment("HOME").map(|home| Path::new(&home).join(".pgpass"));
    let Some(path) = named.or_else(default) else {
        return Ok(None);
    };
    Ok(from_passfile(&path, url))
}

/// The password of a file that contains nothing else, apart from a line end.
fn from_password_file(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |cause: &dyn std::fmt::Display| {
        format!("cannot read the password file {}: {cause}", path.display())
    };
    let text = disk::read(path).map_err(|error| cannot(&error))?;
    let end = text.strip_suffix(b"\n").unwrap_or(&text);
    let end = end.strip_suffix(b"\r").unwrap_or(end);
    if end.is_empty() {
        return Err(cannot(&"it is empty"));
    }
    Ok(end.to_vec())
}

/// The password of the first matching line of a file like `.pgpass`. As with psql, a file that other users may
/// read is ignored with a warning, and a file that does not exist is ignored.
fn from_passfile(path: &Path, url: &Url) -> Option<Vec<u8>> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "ignoring the password file: it is not a regular file");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            "ignoring the password file: other users may read it; run chmod 600 on it"
        );
        return None;
    }
    let text = match disk::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the password file");
            return None;
        }
    };
    let (host, port, database) = url.place();
    let user = match url.config.get_user() {
        Some(user) => user.to_owned(),
        None => system_user()?,
    };
    let wanted = [&*host, &*port.to_string(), &*database, &*user];
    find(&text, &wanted).map(String::into_bytes)
}

/// The user of this process, as the client uses it where the URL names none.
fn system_user() -> Option<String> {
    std::env::var("USER").ok().filter(|user| !user.is_empty())
}

/// The last field of the first line whose other fields match.
fn find(text: &str, wanted: &[&str; 4]) -> Option<String> {
    let line = |line: &str| {
        let fields = fields(line.strip_suffix('\r').unwrap_or(line));
        let [given @ .., password] = &fields[..] else {
            return None;
        };
        let matches = given.len() == wanted.len()
            && given
                .iter()
                .zip(wanted)
                .all(|(given, wanted)| given == "*" || given == wanted);
        matches.then(|| password.clone())
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(line)
}

/// The five fields of a line, separated by `:`. A `\` takes the next character literally. The last field
/// may contain further `:`.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            '\\' => characters.next().unwrap_or('\\'),
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                continue;
            }
            other => other,
        };
        if let Some(field) = fields.last_mut() {
            field.push(literal);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text, &|_| None).expect("valid")
    }

    #[test]
    fn the_url_goes_before_the_environment_and_that_before_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().display().to_string();
        let passfile = dir.path().join(".pgpass");
        std::fs::write(
            &passfile,
            "# comment\nother:*:*:*:no\nh:5432:d:u:from\\:file\n",
        )
        .expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&passfile, private).expect("changed");
        let only_home = |name: &str| (name == "HOME").then(|| home.clone());
        let with_password = |name: &str| match name {
            "PGPASSWORD" => Some("from environment".to_owned()),
            _ => only_home(name),
        };
        let read = |text: &str, environment: Environment<'_>| {
            let password = password(&url(text), environment).expect("readable");
            password.map(|password| String::from_utf8(password).expect("UTF-8"))
        };
        let shown = |text: &str| Some(text.to_owned());
        assert_eq!(read("postgres://u:url@h/d", &with_password), shown("url"));
        assert_eq!(
            read("postgres://u@h/d", &with_password),
            shown("from environment")
        );
        assert_eq!(read("postgres://u@h/d", &only_home), shown("from:file"));
        assert_eq!(read("postgres://u@h:5433/d", &only_home), None);

        let file = dir.path().join("secret");
        std::fs::write(&file, "of a file\n").expect("written");
        let with_file = format!("postgres://u@h/d?password_file={}", file.display());
        assert_eq!(read(&with_file, &with_password), shown("of a file"));
        let missing = url("postgres://u@h/d?password_file=/nonexistent/secret");
        let error = password(&missing, &only_home).expect_err("missing");
        assert!(error.contains("/nonexistent/secret"), "{error}");

        // Readable by others: as if it were not there.
        let public = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&passfile, public).expect("changed");
        assert_eq!(read("postgres://u@h/d", &only_home), None);
    }

    #[test]
    fn lines_of_a_passfile_match_as_with_psql() {
        let wanted = ["h", "5432", "d", "u"];
        for (text, found) in [
            ("h:5432:d:u:pw", Some("pw")),
            ("*:*:*:*:pw", Some("pw")),
            ("h:5432:d:u:a:b", Some("a:b")),
            ("h:5432:d:u:a\\\\b", Some("a\\b")),
            ("\\h:5432:d:u:pw", Some("pw")),
            ("x:5432:d:u:no\nh:5432:d:u:pw\nh:*:*:*:later", Some("pw")),
            ("#h:5432:d:u:pw", None),
            ("h:5432:d:pw", None),
            ("h:5432:d:v:pw", None),
            ("", None),
        ] {
            assert_eq!(find(text, &wanted).as_deref(), found, "{text:?}");
        }
    }
}
