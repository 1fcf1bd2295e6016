//! The body of a request: decoding it, and memory for it. No I/O, no clock.
//!
//! Chunks are decoded strictly (RFC 9112, 7.1): a size is plain hexadecimal, and lines end with CRLF.
//! Extensions and trailer fields are discarded. Memory is used for bytes that have arrived, not for
//! bytes that were announced; only addresses are reserved ahead, see [`reserve`].

use super::framing::Length;

/// Maximum length of a line with a chunk size, extensions included, in bytes.
const SIZE_LINE_BYTES_MAX: usize = 1024;
/// Maximum total length of the extensions and trailer fields of one body, in bytes.
const DISCARDED_BYTES_MAX: usize = 16 << 10;
/// glibc maps each allocation above 32 MiB and unmaps it when it is freed. The mapping threshold for
/// smaller ones is dynamic, and their memory may stay with the process.
const MAPPED_BYTES_MIN: usize = 33 << 20;
/// A body above this size is mapped. For smaller bodies the mapping costs more than it saves.
pub(super) const LARGE_BYTES: usize = 1 << 20;

/// Reserves a total capacity of at least `bytes`. A vector above [`LARGE_BYTES`] reserves
/// [`MAPPED_BYTES_MIN`], so that its memory returns to the system when it is freed. Addresses that are
/// not written to use no memory.
pub(crate) fn reserve(vec: &mut Vec<u8>, bytes: usize) {
    let more = |bytes: usize| bytes.saturating_sub(vec.len());
    let (exact, mapped) = (more(bytes), more(bytes.max(MAPPED_BYTES_MIN)));
    if bytes <= LARGE_BYTES || vec.try_reserve_exact(mapped).is_err() {
        vec.reserve_exact(exact);
    }
}

/// Finds the bytes of the body among the bytes on the wire.
#[derive(Debug)]
pub(super) enum Decoder {
    /// A body with a length; this many bytes are still to come.
    Bytes(u64),
    /// A chunked body; `discarded` counts the bytes of its extensions and trailer fields.
    Chunked { next: Part, discarded: usize },
}

/// The part of a chunked body that is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    SizeLine,
    /// This many bytes, then CRLF.
    Data(u64),
    Trailer,
    End,
}

impl Decoder {
    pub(super) fn new(length: Length) -> Self {
        match length {
            Length::Bytes(left) => Self::Bytes(left),
            Length::Chunked => Self::Chunked {
                next: Part::SizeLine,
                discarded: 0,
            },
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        matches!(
            self,
            Self::Bytes(0)
                | Self::Chunked {
                    next: Part::End,
                    ..
                }
        )
    }

    /// Decodes the start of `input`. Returns the number of bytes consumed, and how many of them, from
    /// the first on, belong to the body. An incomplete line is not consumed.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<(usize, usize), &'static str> {
        let (next, discarded) = match self {
            Self::Bytes(left)
            | Self::Chunked {
                next: Part::Data(left @ 1..),
                ..
            } => {
                let data = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= data as u64;
                return Ok((data, data));
            }
            Self::Chunked { next, discarded } => (next, discarded),
        };
        let bytes_max = match next {
            Part::Trailer => DISCARDED_BYTES_MAX,
            _ => SIZE_LINE_BYTES_MAX,
        };
        let (line, is_complete) = line(input, bytes_max)?;
        let (after, ignored) = match next {
            Part::SizeLine => match size_line(line, is_complete)? {
                (0, ignored) => (Part::Trailer, ignored),
                (size, ignored) => (Part::Data(size), ignored),
            },
            Part::Data(_) if line.is_empty() => (Part::SizeLine, 0),
            Part::Data(_) => return Err("a chunk is longer than its size"),
            Part::Trailer | Part::End if line.is_empty() => (Part::End, 0),
            Part::Trailer | Part::End => (Part::Trailer, trailer(line, is_complete)?),
        };
        if !is_complete {
            return Ok((0, 0));
        }
        *next = after;
        *discarded += ignored;
        if *discarded > DISCARDED_BYTES_MAX {
            return Err("the chunk extensions or trailer fields are too long");
        }
        Ok((line.len() + 2, 0))
    }
}

/// The first line of `input` without its CRLF, and whether the CRLF has arrived.
fn line(input: &[u8], bytes_max: usize) -> Result<(&[u8], bool), &'static str> {
    let window = &input[..input.len().min(bytes_max + 1)];
    let Some(end) = window.iter().position(|byte| is_control(*byte)) else {
        let fits = input.len() <= bytes_max;
        return if fits {
            Ok((input, false))
        } else {
            Err("a line of the chunked body is too long")
        };
    };
    match input[end..] {
        [b'\r'] => Ok((&input[..end], false)),
        [b'\r', b'\n', ..] => Ok((&input[..end], true)),
        _ => Err("a line of the chunked body has a control character, or does not end with CRLF"),
    }
}

/// The size of a chunk, and the length of the extensions after it in bytes.
fn size_line(line: &[u8], is_complete: bool) -> Result<(u64, usize), &'static str> {
    let digits = line.iter().map_while(|byte| char::from(*byte).to_digit(16));
    let count = digits.clone().count();
    let extensions = &line[count..];
    match extensions.first() {
        _ if count > 16 => Err("a chunk size is too long"),
        Some(b';') | None if count > 0 || !is_complete && line.is_empty() => Ok((
            digits.fold(0, |size, digit| size << 4 | u64::from(digit)),
            extensions.len(),
        )),
        _ => Err("a chunk size is not plain hexadecimal"),
    }
}

/// Checks a trailer field and returns its length in bytes.
fn trailer(line: &[u8], is_complete: bool) -> Result<usize, &'static str> {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    let has_colon = name.len() < line.len();
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || (is_complete && !has_colon) {
        return Err("a trailer field is not NAME: VALUE");
    }
    Ok(line.len())
}

fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the body is complete, the body, the number of bytes consumed; or the error.
    type Outcome = Result<(bool, Vec<u8>, usize), &'static str>;

    /// Decodes the input in pieces of `piece` bytes.
    fn receive(length: Length, input: &[u8], piece: usize) -> Outcome {
        let mut decoder = Decoder::new(length);
        let (mut body, mut at, mut end) = (Vec::new(), 0, 0);
        while !decoder.is_complete() {
            let (consumed, data) = decoder.decode(&input[at..end])?;
            body.extend_from_slice(&input[at..at + data]);
            at += consumed;
            if consumed == 0 {
                if end == input.len() {
                    break;
                }
                end = input.len().min(end.saturating_add(piece));
            }
        }
        Ok((decoder.is_complete(), body, at))
    }

    fn chunked(input: &[u8]) -> Outcome {
        let whole = receive(Length::Chunked, input, usize::MAX);
        for piece in 1..input.len() {
            assert_eq!(receive(Length::Chunked, input, piece), whole, "{piece}");
        }
        whole
    }

    #[test]
    fn a_body_ends_after_its_length() {
        for piece in [1, 2, 3, 100] {
            let read = |length, bytes| receive(Length::Bytes(length), bytes, piece);
            assert_eq!(read(3, b"abcd"), Ok((true, b"abc".into(), 3)));
            assert_eq!(read(5, b"abcd"), Ok((false, b"abcd".into(), 4)));
        }
    }

    #[test]
    fn chunks_with_extensions_and_trailers() {
        for wire in [
            &b"3\r\nabc\r\n0\r\n\r\nNEXT"[..],
            b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\nNEXT",
            b"0003\r\nabc\r\n000\r\n\r\nNEXT",
            b"3;x=\"a;b\"; y\r\nabc\r\n0;z\xff\t\r\n\r\nNEXT",
            b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\nNEXT",
        ] {
            let whole = (true, b"abc".to_vec(), wire.len() - 4);
            assert_eq!(chunked(wire), Ok(whole), "{}", wire.escape_ascii());
        }
        let data = (true, b"\r\n0\r\n\r\n...".to_vec(), 20);
        assert_eq!(chunked(b"A\r\n\r\n0\r\n\r\n...\r\n0\r\n\r\n"), Ok(data));
    }

    #[test]
    fn chunks_that_are_not_framed_strictly_are_rejected() {
        let size = "a chunk size is not plain hexadecimal";
        let long = "a chunk size is too long";
        let line = "a line of the chunked body has a control character, or does not end with CRLF";
        let trailer = "a trailer field is not NAME: VALUE";
        for (wire, why) in [
            (&b"+2d\r\n"[..], size),
            (b" 2d\r\n", size),
            (b"2d \r\n", size),
            (b"2d ;x\r\n", size),
            (b"0x2\r\n", size),
            (b"-1\r\n", size),
            (b"\r\n", size),
            (b";x\r\n", size),
            (b"g\r\n", size),
            (b"3\nabc\r\n", line),
            (b"3\r\rabc\r\n", line),
            (b"3\r\nabcd\r\n", "a chunk is longer than its size"),
            (b"3\r\nabc\n0\r\n\r\n", line),
            (b"3\r\nabc\r0\r\n\r\n", line),
            (b"3;a\nabc\r\n", line),
            (b"3;a\0\r\nabc\r\n", line),
            (b"00000000000000003\r\n", long),
            (b"fffffffffffffffff\r\n", long),
            (b"0\r\n\n", line),
            (b"0\r\n folded: a\r\n\r\n", trailer),
            (b"0\r\nGET / HTTP/1.1\r\n\r\n", trailer),
            (b"0\r\na: b\n\r\n", line),
            (b"0\r\n\rx", line),
        ] {
            assert_eq!(chunked(wire), Err(why), "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn extensions_and_trailers_have_bounds() {
        let extension = |bytes: usize| format!("1;{}\r\na\r\n", "x".repeat(bytes));
        let end = "0\r\n\r\n";
        let short = extension(SIZE_LINE_BYTES_MAX - 2) + end;
        assert!(receive(Length::Chunked, short.as_bytes(), 100).is_ok());
        let long = extension(SIZE_LINE_BYTES_MAX) + end;
        assert!(receive(Length::Chunked, long.as_bytes(), 100).is_err());
        let many = extension(1000).repeat(17) + end;
        assert!(receive(Length::Chunked, many.as_bytes(), 100).is_err());
        let trailers = |count: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(receive(Length::Chunked, trailers(4000).as_bytes(), 100).is_ok());
        assert!(receive(Length::Chunked, trailers(4100).as_bytes(), 100).is_err());
    }

    #[test]
    fn only_a_large_body_is_mapped() {
        let mut body = Vec::new();
        reserve(&mut body, LARGE_BYTES);
        assert!(body.capacity() < MAPPED_BYTES_MIN);
        reserve(&mut body, LARGE_BYTES + 1);
        assert!(body.capacity() >= MAPPED_BYTES_MIN);
    }
}
