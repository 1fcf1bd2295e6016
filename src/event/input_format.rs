//! Detection of the input format from its first bytes. No I/O.
//!
//! A format is reported only if it is certain. All other input is treated as JSON Lines, and each
//! invalid line is rejected. A recognised format that cannot be converted is rejected as a whole, before
//! anything is sent or stored, instead of as thousands of invalid lines.

use std::path::Path;

use super::without_bom;

/// The number of bytes at the start of the input that are examined.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    /// JSON Lines, or an unknown format.
    Lines,
    /// Compressed with gzip.
    Gzip,
    /// JSON arrays.
    Array,
    /// A sequence of JSON objects, each over several lines.
    Objects,
    /// A known format that cannot be converted.
    Unfit(Unfit),
}

/// A known format that cannot be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// The name of the format, such as `a zip archive`.
    pub(crate) what: &'static str,
    cure: &'static str,
}

impl Unfit {
    /// Input that is still compressed after it was decompressed once.
    pub(crate) const TWICE_COMPRESSED: Self = Self {
        what: "compressed with gzip twice",
        cure: "decompress it once (gzip -dc FILE > NEW.jsonl.gz), then use that file",
    };

    /// What the user can do with the file at `path`; for an input without a path, such as stdin, it is
    /// `-`.
    pub(crate) fn cure(self, path: &Path) -> String {
        self.cure.replace("FILE", &path.display().to_string())
    }
}

const UNPACK: &str = "unpack it, then use the files in it";
const UTF_16: Unfit = Unfit {
    what: "UTF-16 or UTF-32 text",
    cure: "convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8 FILE > NEW.jsonl`, then use that file",
};
const CSV: Unfit = Unfit {
    what: "CSV",
    cure: "write each record as a JSON object on a line of its own, such as {\"userId\": \"user1\", \"name\": \"add_revenue\", \"value\": 100}",
};
const EXPORT: &str = "export its events as JSON Lines, then use that file";

/// The first bytes of binary formats, their names, and what the user can do.
const MAGIC: [(&[u8], &str, &str); 12] = [
    (
        b"PK\x03\x04",
        "a zip archive",
        "unpack it (unzip -p FILE > NEW.jsonl), then use that file",
    ),
    (b"PK\x05\x06", "an empty zip archive", UNPACK),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "decompress it (zstd -dc FILE > NEW.jsonl), then use that file",
    ),
    (
        b"BZh",
        "compressed with bzip2",
        "decompress it (bzip2 -dc FILE > NEW.jsonl), then use that file",
    ),
    (
        b"\xfd7zXZ\0",
        "compressed with xz",
        "decompress it (xz -dc FILE > NEW.jsonl), then use that file",
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

impl Looks {
    /// Detects the format from the first [`HEAD_BYTES`] bytes, or from all bytes of a shorter input.
    pub(crate) fn of(head: &[u8]) -> Self {
        if head.starts_with(&[0x1f, 0x8b]) {
            return Self::Gzip;
        }
        if is_utf_16(head) {
            return Self::Unfit(UTF_16);
        }
        let magic = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic));
        if let Some(&(_, what, cure)) = magic {
            return Self::Unfit(Unfit { what, cure });
        }
        if head
            .get(TAR_MAGIC.0..)
            .is_some_and(|at| at.starts_with(TAR_MAGIC.1))
        {
            let (what, cure) = (
                "a tar archive",
                "unpack it (tar -xOf FILE > NEW.jsonl), then use that file",
            );
            return Self::Unfit(Unfit { what, cure });
        }
        let text = without_bom(head).trim_ascii_start();
        let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let first = lines.next().unwrap_or_default();
        match text.first() {
            Some(b'[') => Self::Array,
            // The first line must be complete: a file may still be being written.
            Some(b'{') if first == b"{" && text.contains(&b'\n') => Self::Objects,
            Some(b'<') => Self::Unfit(Unfit {
                what: "XML or HTML",
                cure: EXPORT,
            }),
            Some(b'{') | None => Self::Lines,
            Some(_) if is_csv(first, lines.find(|line| !line.is_empty())) => Self::Unfit(CSV),
            Some(_) => Self::Lines,
        }
    }
}

/// Whether the text starts with a UTF-16 byte order mark, or with ASCII whose every other byte is 0.
fn is_utf_16(head: &[u8]) -> bool {
    let alternating = |zero: usize| {
        head.len() >= 4
            && head[..4]
                .iter()
                .enumerate()
                .all(|(at, byte)| (*byte == 0) == (at % 2 == zero))
    };
    head.starts_with(&[0xff, 0xfe])
        || head.starts_with(&[0xfe, 0xff])
        || alternating(0)
        || alternating(1)
}

/// Whether the text is CSV: a header with a field for the user id, or two records with the same number
/// of fields. A line with a brace is taken for damaged JSON.
fn is_csv(first: &[u8], second: Option<&[u8]>) -> bool {
    if first.contains(&b'{') || !first.is_ascii() {
        return false;
    }
    let header = first.to_ascii_lowercase();
    let named = [&b"userid"[..], b"user_id"]
        .iter()
        .any(|field| memchr::memmem::find(&header, field).is_some());
    [b',', b';', b'\t'].iter().any(|separator| {
        let fields = |line: &[u8]| memchr::memchr_iter(*separator, line).count();
        let count = fields(first);
        count > 0 && (named || count > 1 && second.is_some_and(|line| fields(line) == count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(head: &[u8]) -> &'static str {
        match Looks::of(head) {
            Looks::Lines => "lines",
            Looks::Gzip => "gzip",
            Looks::Array => "array",
            Looks::Objects => "objects",
            Looks::Unfit(unfit) => unfit.what,
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
            (b"\xff\xfe{\0", UTF_16.what),
            (b"{\0\"\0u\0", UTF_16.what),
            (b"\0{\0\"\0u", UTF_16.what),
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
}
