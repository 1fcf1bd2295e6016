//! Detection of the input format from its first bytes. No I/O.
//!
//! A format is reported only if it is certain. All other input is treated as JSON Lines, and each
//! invalid line is rejected. A recognised format that cannot be converted is rejected as a whole, before
//! anything is sent or stored, instead of as thousands of invalid lines.

mod objects;
mod unsupported;

use self::objects::First;
use self::unsupported::Columns;
pub(crate) use self::unsupported::Unsupported;
use super::without_bom;

/// The number of bytes at the start of the input that are examined.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// The format of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InputFormat {
    /// JSON Lines, or an unknown format.
    Lines,
    /// Compressed with gzip; the format of the content is not known yet.
    Gzip,
    /// One or several JSON arrays of objects.
    Array,
    /// A sequence of JSON objects, each over several lines.
    Objects,
    /// A sequence of JSON objects on one line.
    Joined,
    /// A known format that cannot be converted.
    Unsupported(Unsupported),
}

const UNPACK: Kind = Kind::Advice("unpack it, then use the files in it");
const EXPORT: Kind = Kind::Advice("export its events as JSON Lines, then use that file");

/// What the user can do with a binary format.
#[derive(Clone, Copy)]
enum Kind {
    Command(&'static str),
    Advice(&'static str),
}

/// The first bytes of binary formats, their names, and what the user can do.
const MAGIC: [(&[u8], &str, Kind); 12] = [
    (
        b"PK\x03\x04",
        "a zip archive",
        Kind::Command("unzip -p FILE"),
    ),
    (b"PK\x05\x06", "an empty zip archive", UNPACK),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        Kind::Command("zstd -dc FILE"),
    ),
    (
        b"BZh",
        "compressed with bzip2",
        Kind::Command("bzip2 -dc FILE"),
    ),
    (
        b"\xfd7zXZ\0",
        "compressed with xz",
        Kind::Command("xz -dc FILE"),
    ),
    (b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"SQLite format 3\0", "an SQLite database", EXPORT),
    (b"PAR1", "a Parquet file", EXPORT),
    (b"ARROW1", "an Arrow file", EXPORT),
    (b"Obj\x01", "an Avro file", EXPORT),
    (b"%PDF-", "a PDF document", EXPORT),
];
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

impl InputFormat {
    /// Detects the format from the first [`HEAD_BYTES`] bytes, or from all bytes of a shorter input.
    pub(crate) fn of(head: &[u8]) -> Self {
        if head.starts_with(&[0x1f, 0x8b]) {
            return Self::Gzip;
        }
        if let Some(unsupported) = wide_text(head).or_else(|| binary(head)) {
            return Self::Unsupported(unsupported);
        }
        let text = without_bom(head).trim_ascii_start();
        let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let first = lines.next().unwrap_or_default();
        match text.first() {
            Some(b'[') => Self::Array,
            Some(b'{') => match objects::first(text) {
                First::Wrapper(key) => Self::Unsupported(Unsupported::wrapped(&key)),
                First::Lines => Self::Objects,
                First::Joined => Self::Joined,
                // The first line must be complete: a file may still be being written.
                First::Line if first == b"{" && text.contains(&b'\n') => Self::Objects,
                First::Line => Self::Lines,
            },
            Some(b'<') => Self::Unsupported(Unsupported::XML),
            None => Self::Lines,
            Some(_) if is_multipart(first, lines.clone().next()) => {
                Self::Unsupported(Unsupported::MULTIPART)
            }
            Some(_) if is_form(first) => Self::Unsupported(Unsupported::FORM),
            Some(_) => match csv(first, lines.find(|line| !line.is_empty())) {
                Some(unsupported) => Self::Unsupported(unsupported),
                None => Self::Lines,
            },
        }
    }
}

/// UTF-16 or UTF-32 with a byte order mark, or ASCII in UTF-16 without one.
fn wide_text(head: &[u8]) -> Option<Unsupported> {
    let alternating = |zero: usize| {
        head.len() >= 4
            && head[..4]
                .iter()
                .enumerate()
                .all(|(at, byte)| (*byte == 0) == (at % 2 == zero))
    };
    let unsupported = match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Unsupported::UTF_32,
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Unsupported::UTF_16,
        _ if alternating(1) => Unsupported::UTF_16LE,
        _ if alternating(0) => Unsupported::UTF_16BE,
        _ => return None,
    };
    Some(unsupported)
}

/// A binary format that its first bytes identify.
fn binary(head: &[u8]) -> Option<Unsupported> {
    let tar = head.get(TAR_MAGIC.0..);
    let tar = tar.is_some_and(|at| at.starts_with(TAR_MAGIC.1));
    if tar {
        return Some(Unsupported::with_command("a tar archive", "tar -xOf FILE"));
    }
    let magic = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic));
    magic.map(|&(_, what, kind)| match kind {
        Kind::Command(command) => Unsupported::with_command(what, command),
        Kind::Advice(advice) => Unsupported::with_advice(what, advice),
    })
}

/// Whether the text is a form with a file in it, as browsers and `curl -F` send.
fn is_multipart(first: &[u8], second: Option<&[u8]>) -> bool {
    let header = b"content-disposition: form-data";
    let second = second.unwrap_or_default().to_ascii_lowercase();
    first.starts_with(b"--") && second.starts_with(header)
}

/// Whether the line is form encoding with the fields of an event, or with JSON in a field.
fn is_form(first: &[u8]) -> bool {
    let mut fields = first.split(|byte| *byte == b'&');
    let is_encoded = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~*+%=&@".contains(byte);
    let named = |field: &[u8]| {
        let field = field.to_ascii_lowercase();
        field.starts_with(b"userid=") || memchr::memmem::find(&field, b"%22userid%22").is_some()
    };
    first.iter().all(is_encoded) && fields.any(named)
}

/// CSV: a header with a field for the user id, or two records with the same number of fields. A line
/// with a brace is taken for damaged JSON.
fn csv(first: &[u8], second: Option<&[u8]>) -> Option<Unsupported> {
    if first.contains(&b'{') || !first.is_ascii() {
        return None;
    }
    let header = first.to_ascii_lowercase();
    let named = [&b"userid"[..], b"user_id"]
        .iter()
        .any(|field| memchr::memmem::find(&header, field).is_some());
    [b',', b';', b'\t'].into_iter().find_map(|separator| {
        let fields = |line: &[u8]| memchr::memchr_iter(separator, line).count();
        let count = fields(first);
        let is_csv =
            count > 0 && (named || count > 1 && second.is_some_and(|line| fields(line) == count));
        is_csv.then(|| Unsupported::csv(columns(&header, second, separator).as_ref()))
    })
}

/// The columns of an event, if the lines show which they are and no field is quoted.
fn columns(header: &[u8], second: Option<&[u8]>, separator: u8) -> Option<Columns> {
    if header.contains(&b'"') || second.is_some_and(|line| line.contains(&b'"')) {
        return None;
    }
    let fields: Vec<&[u8]> = header.split(|byte| *byte == separator).collect();
    let at = |names: &[&[u8]]| {
        fields
            .iter()
            .position(|field| names.contains(&field.trim_ascii()))
    };
    if let (Some(user_id), Some(name), Some(value)) = (
        at(&[b"userid", b"user_id"]),
        at(&[b"name"]),
        at(&[b"value"]),
    ) {
        return Some(Columns {
            separator,
            header: true,
            user_id,
            name,
            value,
        });
    }
    let is_kind = |field: &&[u8]| matches!(*field, b"add_revenue" | b"subtract_revenue");
    let in_order = fields.len() == 3 && is_kind(&fields[1]);
    in_order.then_some(Columns {
        separator,
        header: false,
        user_id: 0,
        name: 1,
        value: 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(head: &[u8]) -> &'static str {
        match InputFormat::of(head) {
            InputFormat::Lines => "lines",
            InputFormat::Gzip => "gzip",
            InputFormat::Array => "array",
            InputFormat::Objects => "objects",
            InputFormat::Joined => "joined",
            InputFormat::Unsupported(unsupported) => unsupported.what,
        }
    }

    #[test]
    fn known_formats_are_recognised_and_all_others_are_json_lines() {
        for (head, expected) in [
            (&b""[..], "lines"),
            (b"{\"userId\":\"u\"}\n", "lines"),
            (b"\xef\xbb\xbf{\"userId\":\"u\"}\n", "lines"),
            (b"nonsense\n{\"userId\":\"u\"}\n", "lines"),
            (b"one, two\n{\"userId\":\"u\",\"name\":\"n\"}\n", "lines"),
            (b"\0\0\0\0\0", "lines"),
            (b"\n{\"userId\":\"u\",\"na\n", "lines"),
            (b"\xef\xbb\xbf \n [{", "array"),
            (b"[]", "array"),
            (b"{\n  \"userId\"", "objects"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"{\"a\":1}{\"a\":1}", "joined"),
            (b"{\"a\":\n1}\n{", "objects"),
            (
                b"{\"data\":[{\"userId\":\"u\"}]}",
                "a JSON object with the events in an array",
            ),
            (b"\xff\xfe{\0", "UTF-16 text"),
            (b"{\0\"\0u\0", "UTF-16 text"),
            (b"\0{\0\"\0u", "UTF-16 text"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32 text"),
            (b"userId=u&name=add_revenue&value=1", "form encoding"),
            (b"%7B%22userId%22%3A%22u%22", "form encoding"),
            (b"a=b&c=d", "lines"),
            (
                b"--X\r\nContent-Disposition: form-data; name=a\r\n",
                "a multipart form",
            ),
            (b"PK\x03\x04", "a zip archive"),
            (b"userId,name,value\nu,add_revenue,1\n", "CSV"),
            (b"\xef\xbb\xbfuserId;value\r\n", "CSV"),
            (b"u,add_revenue,1\nv,add_revenue,2\n", "CSV"),
            (b"<?xml version", "XML or HTML"),
        ] {
            assert_eq!(what(head), expected, "{:?}", String::from_utf8_lossy(head));
        }
        let mut tar = vec![0; 300];
        tar[0] = b'e';
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(what(&tar), "a tar archive");
    }

    #[test]
    fn the_command_for_csv_has_its_columns() {
        let cure = |head: &[u8]| match InputFormat::of(head) {
            InputFormat::Unsupported(unsupported) => {
                unsupported.cure(std::path::Path::new("a.csv"))
            }
            other => panic!("{other:?}"),
        };
        for (head, command) in [
            (
                &b"value;userId;name\n1;u;add_revenue\n"[..],
                r#"`tail -n +2 a.csv | jq -Rc 'rtrimstr("\r") / ";" | {userId: .[1], name: .[2], value: (.[0] | tonumber)}' > NEW.jsonl`"#,
            ),
            (
                b"u,add_revenue,1\nv,add_revenue,2\n",
                r#"`jq -Rc 'rtrimstr("\r") / "," | {userId: .[0], name: .[1], value: (.[2] | tonumber)}' a.csv > NEW.jsonl`"#,
            ),
        ] {
            let text = cure(head);
            assert!(text.contains(command), "{text}");
        }
        for head in [
            &b"userId,name,value\n\"u\",add_revenue,1\n"[..],
            b"user_id,amount\nu,1\n",
        ] {
            assert!(
                cure(head).starts_with("write each record"),
                "{}",
                cure(head)
            );
        }
    }
}
