//! Formats that are recognised and not read, and what the user can do with each.

use std::borrow::Cow;
use std::path::Path;

/// A known format that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported {
    /// The name of the format, such as `a zip archive`.
    pub(crate) what: &'static str,
    cure: Cure,
}

/// What the user can do. `FILE` stands for the input.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cure {
    /// A shell command that writes the events to stdout as JSON Lines.
    Command(Cow<'static, str>),
    Advice(&'static str),
}

/// The object that an event is, as an example.
macro_rules! example {
    () => {
        r#"{"userId": "user1", "name": "add_revenue", "value": 100}"#
    };
}

const WRAPPER: &str = "a JSON object with the events in an array";

impl Unsupported {
    pub(super) const fn with_command(what: &'static str, command: &'static str) -> Self {
        Self {
            what,
            cure: Cure::Command(Cow::Borrowed(command)),
        }
    }

    pub(super) const fn with_advice(what: &'static str, advice: &'static str) -> Self {
        Self {
            what,
            cure: Cure::Advice(advice),
        }
    }

    /// Input that is still compressed after it was decompressed once.
    pub(crate) const TWICE_COMPRESSED: Self = Self::with_advice(
        "compressed with gzip twice",
        "decompress it once (gzip -dc FILE > NEW.jsonl.gz), then use that file",
    );
    pub(super) const UTF_16: Self =
        Self::with_command("UTF-16 text", "iconv -f UTF-16 -t UTF-8 FILE");
    pub(super) const UTF_16LE: Self =
        Self::with_command("UTF-16 text", "iconv -f UTF-16LE -t UTF-8 FILE");
    pub(super) const UTF_16BE: Self =
        Self::with_command("UTF-16 text", "iconv -f UTF-16BE -t UTF-8 FILE");
    pub(super) const UTF_32: Self =
        Self::with_command("UTF-32 text", "iconv -f UTF-32 -t UTF-8 FILE");
    pub(super) const XML: Self = Self::with_advice(
        "XML or HTML",
        "export its events as JSON Lines, then use that file",
    );
    pub(super) const FORM: Self = Self::with_advice(
        "form encoding",
        concat!(
            "send each event as a JSON object on a line of its own: with curl, `curl -d '",
            example!(),
            "' URL`"
        ),
    );
    pub(super) const MULTIPART: Self = Self::with_advice(
        "a multipart form",
        "send the file itself as the body: with curl, `--data-binary @FILE` instead of `-F`",
    );
    const CSV: Self = Self::with_advice(
        "CSV",
        concat!(
            "write each record as a JSON object on a line of its own, such as ",
            example!()
        ),
    );
    /// JSON objects over several lines. Only some inputs are not read in this format.
    pub(crate) const OBJECTS: Self =
        Self::with_command("JSON objects over several lines", "jq -c . FILE");
    /// JSON objects one after the other on one line. Only some inputs are not read in this format.
    pub(crate) const JOINED: Self = Self::with_command(
        "JSON objects without line ends between them",
        "jq -c . FILE",
    );

    /// A request body that is compressed, without the header that says so.
    pub(crate) const GZIP_BODY: Self = Self::with_advice(
        "compressed with gzip",
        "send it with the header `Content-Encoding: gzip`",
    );

    /// An object that has the events in an array, its member `key`.
    pub(super) fn wrapped(key: &str) -> Self {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let plain = key.bytes().all(is_word) && !key.starts_with(|c: char| c.is_ascii_digit());
        let command = match (plain, key.contains('\'')) {
            (true, _) => format!("jq -c '.{key}[]' FILE"),
            (false, false) => format!("jq -c '.[{}][]' FILE", serde_json::Value::from(key)),
            (false, true) => "jq -c '.[] | arrays | .[]' FILE".to_owned(),
        };
        Self {
            what: WRAPPER,
            cure: Cure::Command(command.into()),
        }
    }

    /// Whether it is an object that has the events in an array.
    pub(crate) fn is_wrapper(&self) -> bool {
        self.what == WRAPPER
    }

    /// CSV with these columns, from 0; `None` if they are unknown or a field is quoted.
    pub(super) fn csv(columns: Option<&Columns>) -> Self {
        let Some(Columns {
            separator,
            header,
            user_id,
            name,
            value,
        }) = columns
        else {
            return Self::CSV;
        };
        let separator = match separator {
            b'\t' => "\\t".to_owned(),
            other => char::from(*other).to_string(),
        };
        let lines = if *header {
            "tail -n +2 FILE | jq -Rc"
        } else {
            "jq -Rc"
        };
        let file = if *header { "" } else { " FILE" };
        let command = format!(
            "{lines} 'rtrimstr(\"\\r\") / \"{separator}\" | {{userId: .[{user_id}], name: .[{name}], value: (.[{value}] | tonumber)}}'{file}"
        );
        Self {
            what: "CSV",
            cure: Cure::Command(command.into()),
        }
    }

    /// What the user can do with the file at `path`; for an input without a path, such as stdin, it is
    /// `-`.
    pub(crate) fn cure(&self, path: &Path) -> String {
        let file = quoted(path);
        match &self.cure {
            Cure::Command(command) => format!(
                "convert it with `{} > NEW.jsonl`, then use that file",
                command.replace("FILE", &file)
            ),
            Cure::Advice(advice) => advice.replace("FILE", &file),
        }
    }

    /// What the sender of a request body in this format can do.
    pub(crate) fn cure_of_body(&self) -> String {
        match &self.cure {
            _ if *self == Self::JOINED => {
                "with curl, use `--data-binary @FILE`; `-d @FILE` removes the line ends".to_owned()
            }
            Cure::Command(command) => format!(
                "send the output of `{command}`: with curl, `{command} | curl --data-binary @- URL`"
            ),
            Cure::Advice(advice) => (*advice).to_owned(),
        }
    }
}

/// The columns of CSV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) separator: u8,
    /// Whether the first line has the names of the columns.
    pub(super) header: bool,
    pub(super) user_id: usize,
    pub(super) name: usize,
    pub(super) value: usize,
}

/// A path for the command line of a shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%".contains(&byte);
    if path.bytes().all(is_plain) {
        return path;
    }
    format!("'{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_for_the_shell() {
        for (path, expected) in [
            ("a/b-1.jsonl", "a/b-1.jsonl"),
            ("my file", "'my file'"),
            ("it's", r"'it'\''s'"),
            ("$(x)", "'$(x)'"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }

    #[test]
    fn a_member_is_named_as_jq_does() {
        for (key, expected) in [
            ("events", "jq -c '.events[]' FILE"),
            ("my events", "jq -c '.[\"my events\"][]' FILE"),
            ("2026", "jq -c '.[\"2026\"][]' FILE"),
            ("it's", "jq -c '.[] | arrays | .[]' FILE"),
        ] {
            let unsupported = Unsupported::wrapped(key);
            assert_eq!(unsupported.cure, Cure::Command(expected.into()));
        }
    }
}
