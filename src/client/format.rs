//! What an input looks like from its first bytes: lines, an array, or something that is no input.
//!
//! Pure, no I/O. What cannot be sent is refused by name before anything is sent: line by line it
//! would be thousands of refused lines, or half of it accepted.

/// The most that is looked at.
pub(super) const HEAD_BYTES: usize = 1 << 12;
/// What some programs put at the start of a text in UTF-8; ignored there, and only there.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How an input is cut into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One event a line.
    Lines,
    /// JSON arrays of events.
    Arrays,
}

/// What an input is that cannot be sent, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    /// Such as `a zip archive`.
    pub(super) looks_like: &'static str,
    /// A command, or what to convert it to.
    pub(super) cure: &'static str,
}

const SIGNATURES: [(&[u8], Unfit); 8] = [
    (
        b"PK\x03\x04",
        Unfit {
            looks_like: "a zip archive",
            cure: "unpack it and send the file in it: unzip -p FILE | tallyline send -",
        },
    ),
    (
        b"PK\x05\x06",
        Unfit {
            looks_like: "an empty zip archive",
            cure: "there is nothing in it to send",
        },
    ),
    (
        b"\xfd7zXZ\0",
        Unfit {
            looks_like: "compressed by xz",
            cure: "unpack it: xz -dc FILE | tallyline send -",
        },
    ),
    (
        b"\x28\xb5\x2f\xfd",
        Unfit {
            looks_like: "compressed by zstd",
            cure: "unpack it: zstd -dc FILE | tallyline send -",
        },
    ),
    (
        b"BZh",
        Unfit {
            looks_like: "compressed by bzip2",
            cure: "unpack it: bzip2 -dc FILE | tallyline send -",
        },
    ),
    (
        b"SQLite format 3\0",
        Unfit {
            looks_like: "an SQLite database",
            cure: "export its events as JSON Lines, one object a line",
        },
    ),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
];

const UTF_16: Unfit = Unfit {
    looks_like: "text in UTF-16",
    cure: "convert it to UTF-8: iconv -f UTF-16 -t UTF-8 FILE | tallyline send -",
};

const TAR: Unfit = Unfit {
    looks_like: "a tar archive",
    cure: "unpack it and send the file in it: tar -xOf FILE | tallyline send -",
};
/// Where a tar archive has its name.
const TAR_AT: usize = 257;

const CSV: Unfit = Unfit {
    looks_like: "CSV",
    cure: "convert it to JSON Lines, one object a line such as {\"userId\": \"user1\", \"name\": \"add_revenue\", \"value\": 100}",
};

/// The format of an input that begins with `head` (inflated).
pub(super) fn of(head: &[u8]) -> Result<Format, Unfit> {
    let found = SIGNATURES.iter().find(|(bytes, _)| head.starts_with(bytes));
    if let Some((_, unfit)) = found {
        return Err(*unfit);
    }
    if head
        .get(TAR_AT..)
        .is_some_and(|rest| rest.starts_with(b"ustar"))
    {
        return Err(TAR);
    }
    let json = |byte: &u8| matches!(byte, b'{' | b'[' | b' ' | b'\r' | b'\n' | b'"');
    match head {
        // Without a byte order mark: every other byte of the first characters is 0.
        [0, first, 0, ..] | [first, 0, _, 0, ..] if json(first) => return Err(UTF_16),
        _ => {}
    }
    let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    if text.trim_ascii_start().starts_with(b"[") {
        return Ok(Format::Arrays);
    }
    if is_csv(text) {
        Err(CSV)
    } else {
        Ok(Format::Lines)
    }
}

/// Whether the first two lines have the same number of the same separators and are not JSON.
fn is_csv(text: &[u8]) -> bool {
    let mut lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    let Some(first) = lines.next() else {
        return false;
    };
    let second = lines.next();
    let looks_like_json = |line: &[u8]| line.starts_with(b"{") || line.starts_with(b"[");
    if looks_like_json(first) || second.is_some_and(looks_like_json) || first.contains(&0) {
        return false;
    }
    b",;\t".iter().any(|separator| {
        let count = |line: &[u8]| memchr::memchr_iter(*separator, line).count();
        count(first) > 0 && second.is_none_or(|second| count(second) == count(first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_sent() {
        for lines in [
            "",
            "\n\n",
            "{\"userId\": \"u\", \"name\": \"add_revenue\", \"value\": 1}\n",
            "\u{feff}{}\n",
            "not json\nneither\n",
            "hello, world\n{\"userId\": \"u\"}\n",
            "1,2",
            "\"text\"\n",
        ] {
            assert_eq!(of(lines.as_bytes()), Ok(Format::Lines), "{lines:?}");
        }
        for array in ["[]", " \r\n[\n{", "\u{feff}\n[{}]"] {
            assert_eq!(of(array.as_bytes()), Ok(Format::Arrays), "{array:?}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        let looks_like = |head: &[u8]| of(head).map_err(|unfit| unfit.looks_like);
        for csv in [
            "userId,name,value\nu,add_revenue,1\n",
            "\u{feff}userId;name;value\r\nu;add_revenue;1\r\n",
            "\"userId\"\t\"name\"\n",
        ] {
            assert_eq!(looks_like(csv.as_bytes()), Err("CSV"), "{csv:?}");
        }
        let utf_16 = |text: &str, order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(order).collect()
        };
        for text in ["{\"userId\"", "[{", "\u{feff}{"] {
            for order in [u16::to_le_bytes, u16::to_be_bytes] {
                assert_eq!(looks_like(&utf_16(text, order)), Err("text in UTF-16"));
            }
        }
        assert_eq!(looks_like(b"PK\x03\x04\x14\0"), Err("a zip archive"));
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(looks_like(&tar), Err("a tar archive"));
    }
}
