//! The body of a request: bytes off the wire in, the body out, within bounds. No I/O, no clock.
//!
//! Chunks are decoded strictly (RFC 9112, 7.1): a size is plain hexadecimal, lines end with CRLF.
//! Extensions and trailer fields are discarded. Memory follows the bytes that came, never those
//! that were announced, but for addresses: see [`reserve`].

use super::framing::Length;

/// The longest line of a chunk's size, in bytes, with its extensions.
const SIZE_LINE_BYTES_MAX: usize = 1024;
/// Bytes of all extensions, or of all trailer fields, of one body.
const DISCARDED_BYTES_MAX: usize = 16 << 10;
/// glibc maps an allocation of more than 32 MiB, unmaps it when it is freed, and keeps nothing of
/// it (smaller ones raise the threshold for mapping, and are kept when freed).
const MAPPED_BYTES_MIN: usize = 33 << 20;
/// From this size on a body is mapped: below, mapping costs more than it saves.
const LARGE_BYTES: usize = 1 << 20;

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Body {
    decoder: Decoder,
    bytes: Vec<u8>,
    /// Bytes decoded, kept or not.
    count: u64,
    bytes_max: usize,
    keep: Keep,
}

/// Whether the bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Up to the limit.
    UpToLimit,
    /// None of them: the reply does not depend on them.
    Nothing,
}

/// How far a body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// More must come.
    Partly,
    /// It is complete.
    Whole,
    /// It is complete and was too large to be kept.
    WholeTooLarge,
    /// It is too large even to be discarded to its end.
    FarTooLarge,
}

impl Body {
    pub(super) fn new(length: Length, bytes_max: usize, keep: Keep) -> Self {
        Self {
            decoder: Decoder::new(length),
            bytes: Vec::new(),
            count: 0,
            bytes_max,
            keep,
        }
    }

    /// The longest body that is read to its end, though it is not kept.
    pub(super) fn discard_max(bytes_max: usize) -> u64 {
        4 * bytes_max as u64
    }

    /// Reserves memory for so many bytes in all.
    pub(super) fn reserve(&mut self, bytes: usize) {
        reserve(&mut self.bytes, bytes.min(self.bytes_max));
    }

    /// The most bytes that are kept.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Bytes kept so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes decoded so far, kept or not.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Takes what belongs to the body from the start of `input`: how many bytes that was, and how
    /// far the body has come; or what is wrong with the chunks.
    pub(super) fn receive(&mut self, input: &[u8]) -> Result<(usize, Received), &'static str> {
        let mut at = 0;
        while !self.decoder.is_complete() {
            let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) else {
                return Ok((at, Received::Partly));
            };
            let (consumed, data) = self.decoder.decode(rest)?;
            self.keep(&rest[..data]);
            at += consumed;
            if self.count > Self::discard_max(self.bytes_max) {
                return Ok((at, Received::FarTooLarge));
            }
        }
        Ok(match self.keep {
            Keep::UpToLimit if self.count > self.bytes_max as u64 => (at, Received::WholeTooLarge),
            _ => (at, Received::Whole),
        })
    }

    fn keep(&mut self, data: &[u8]) {
        self.count += data.len() as u64;
        if self.keep == Keep::Nothing || self.count > self.bytes_max as u64 {
            self.bytes = Vec::new();
            return;
        }
        if self.bytes.len() + data.len() > self.bytes.capacity().max(LARGE_BYTES) {
            reserve(&mut self.bytes, self.bytes_max);
        }
        self.bytes.extend_from_slice(data);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Makes room for `bytes` in all. A large vector reserves more addresses than it needs, which
/// costs nothing until they are written to, so that its memory goes back to the system at once.
pub(crate) fn reserve(vec: &mut Vec<u8>, bytes: usize) {
    let more = |bytes: usize| bytes.saturating_sub(vec.len());
    let (exact, mapped) = (more(bytes), more(bytes.max(MAPPED_BYTES_MIN)));
    if bytes <= LARGE_BYTES || vec.try_reserve_exact(mapped).is_err() {
        vec.reserve_exact(exact);
    }
}

/// Finds the body's bytes among those on the wire.
#[derive(Debug)]
enum Decoder {
    Bytes { left: u64 },
    Chunked { at: Chunk, discarded: usize },
}

/// What comes next of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size { size: u64, line: usize },
    Extension { size: u64, line: usize },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataLf,
    TrailerStart,
    Trailer { named: bool },
    TrailerLf,
    EndLf,
    End,
}

impl Decoder {
    fn new(length: Length) -> Self {
        match length {
            Length::Bytes(left) => Self::Bytes { left },
            Length::Chunked => Self::Chunked {
                at: Chunk::Size { size: 0, line: 0 },
                discarded: 0,
            },
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::Bytes { left } => *left == 0,
            Self::Chunked { at, .. } => *at == Chunk::End,
        }
    }

    /// Decodes from an input that is not empty: how many bytes are consumed, how many of them, from
    /// the first on, belong to the body.
    fn decode(&mut self, input: &[u8]) -> Result<(usize, usize), &'static str> {
        let take = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        match self {
            Self::Bytes { left } => {
                let data = take(*left);
                *left -= data as u64;
                Ok((data, data))
            }
            Self::Chunked {
                at: Chunk::Data { left },
                ..
            } if *left > 0 => {
                let data = take(*left);
                *left -= data as u64;
                Ok((data, data))
            }
            Self::Chunked { at, discarded } => {
                *at = at.next(input[0])?;
                let discards = matches!(at, Chunk::Extension { .. } | Chunk::Trailer { .. });
                *discarded += usize::from(discards);
                if *discarded > DISCARDED_BYTES_MAX {
                    return Err("the chunk extensions or trailer fields are too long");
                }
                Ok((1, 0))
            }
        }
    }
}

impl Chunk {
    /// What comes after this byte.
    fn next(self, byte: u8) -> Result<Self, &'static str> {
        let line_end = |is: u8, next: Self| match byte {
            byte if byte == is => Ok(next),
            _ => Err("a line of the chunked body does not end with CRLF"),
        };
        match self {
            Self::Size { line, .. } | Self::Extension { line, .. }
                if line >= SIZE_LINE_BYTES_MAX =>
            {
                Err("a chunk's size line is too long")
            }
            Self::Size { size, line } => match (char::from(byte).to_digit(16), byte) {
                (Some(_), _) if line >= 16 => Err("a chunk size is too long"),
                (Some(digit), _) => Ok(Self::Size {
                    size: size << 4 | u64::from(digit),
                    line: line + 1,
                }),
                (None, b'\r') if line > 0 => Ok(Self::SizeLf { size }),
                (None, b';') if line > 0 => Ok(Self::Extension { size, line }),
                _ => Err("a chunk size is not plain hexadecimal"),
            },
            Self::Extension { size, line } => match byte {
                b'\r' => Ok(Self::SizeLf { size }),
                byte if is_control(byte) => Err("a chunk extension contains a control character"),
                _ => Ok(Self::Extension {
                    size,
                    line: line + 1,
                }),
            },
            Self::SizeLf { size: 0 } | Self::TrailerLf => line_end(b'\n', Self::TrailerStart),
            Self::SizeLf { size } => line_end(b'\n', Self::Data { left: size }),
            Self::Data { .. } => line_end(b'\r', Self::DataLf),
            Self::DataLf => line_end(b'\n', Self::Size { size: 0, line: 0 }),
            Self::TrailerStart if byte == b'\r' => Ok(Self::EndLf),
            Self::TrailerStart | Self::Trailer { named: false } => match byte {
                b':' if self != Self::TrailerStart => Ok(Self::Trailer { named: true }),
                byte if is_token(byte) => Ok(Self::Trailer { named: false }),
                _ => Err("a trailer field is not NAME: VALUE"),
            },
            Self::Trailer { named: true } => match byte {
                b'\r' => Ok(Self::TrailerLf),
                byte if is_control(byte) => Err("a trailer field contains a control character"),
                _ => Ok(self),
            },
            Self::EndLf => line_end(b'\n', Self::End),
            Self::End => Ok(self),
        }
    }
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

    type Outcome = Result<(Received, Vec<u8>, usize), &'static str>;

    /// Receives in pieces of that length: what became of it, the body, the bytes consumed.
    fn receive(length: Length, input: &[u8], piece: usize, bytes_max: usize) -> Outcome {
        let mut body = Body::new(length, bytes_max, Keep::UpToLimit);
        let mut consumed = 0;
        for piece in input.chunks(piece) {
            let (count, received) = body.receive(piece)?;
            consumed += count;
            if received != Received::Partly {
                return Ok((received, body.into_bytes(), consumed));
            }
            assert_eq!(count, piece.len(), "all of it, as more must come");
        }
        Ok((Received::Partly, body.into_bytes(), consumed))
    }

    fn chunked(input: &[u8]) -> Outcome {
        let whole = receive(Length::Chunked, input, usize::MAX, 100);
        for piece in 1..input.len() {
            assert_eq!(
                receive(Length::Chunked, input, piece, 100),
                whole,
                "{piece}"
            );
        }
        whole
    }

    #[test]
    fn a_body_ends_after_its_length() {
        for piece in [1, 2, 3, 100] {
            let read = |length, bytes| receive(Length::Bytes(length), bytes, piece, 100);
            assert_eq!(read(3, b"abcd"), Ok((Received::Whole, b"abc".into(), 3)));
            assert_eq!(read(5, b"abcd"), Ok((Received::Partly, b"abcd".into(), 4)));
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
            let whole = (Received::Whole, b"abc".to_vec(), wire.len() - 4);
            assert_eq!(chunked(wire), Ok(whole), "{}", wire.escape_ascii());
        }
        let data = (Received::Whole, b"\r\n0\r\n\r\n...".to_vec(), 20);
        assert_eq!(chunked(b"A\r\n\r\n0\r\n\r\n...\r\n0\r\n\r\n"), Ok(data));
    }

    #[test]
    fn chunks_that_are_not_framed_strictly_are_rejected() {
        let size = "a chunk size is not plain hexadecimal";
        let line = "a line of the chunked body does not end with CRLF";
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
            (b"3\nabc\r\n", size),
            (b"3\r\rabc\r\n", line),
            (b"3\r\nabcd\r\n", line),
            (b"3\r\nabc\n0\r\n\r\n", line),
            (b"3\r\nabc\r0\r\n\r\n", line),
            (
                b"3;a\nabc\r\n",
                "a chunk extension contains a control character",
            ),
            (b"00000000000000003\r\n", "a chunk size is too long"),
            (b"fffffffffffffffff\r\n", "a chunk size is too long"),
            (b"0\r\n\n", "a trailer field is not NAME: VALUE"),
            (
                b"0\r\n folded: a\r\n\r\n",
                "a trailer field is not NAME: VALUE",
            ),
            (
                b"0\r\nGET / HTTP/1.1\r\n\r\n",
                "a trailer field is not NAME: VALUE",
            ),
            (
                b"0\r\na: b\n\r\n",
                "a trailer field contains a control character",
            ),
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
        assert!(receive(Length::Chunked, short.as_bytes(), 100, 100).is_ok());
        let long = extension(SIZE_LINE_BYTES_MAX) + end;
        assert!(receive(Length::Chunked, long.as_bytes(), 100, 100).is_err());
        let many = extension(1000).repeat(17) + end;
        assert!(receive(Length::Chunked, many.as_bytes(), 100, 100).is_err());
        let trailers = |count: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(receive(Length::Chunked, trailers(4000).as_bytes(), 100, 100).is_ok());
        assert!(receive(Length::Chunked, trailers(4100).as_bytes(), 100, 100).is_err());
    }

    #[test]
    fn over_the_limit_it_is_discarded_up_to_four_times_the_limit() {
        let wire = vec![b'x'; 500];
        for piece in [1, 7, 500] {
            let read = |length| receive(Length::Bytes(length), &wire, piece, 100);
            assert_eq!(read(100), Ok((Received::Whole, vec![b'x'; 100], 100)));
            assert_eq!(read(101), Ok((Received::WholeTooLarge, Vec::new(), 101)));
            assert_eq!(read(400), Ok((Received::WholeTooLarge, Vec::new(), 400)));
            let (received, kept, _) = read(450).expect("no fault");
            assert_eq!((received, kept.len()), (Received::FarTooLarge, 0));
        }
        let mut body = Body::new(Length::Bytes(300), 100, Keep::Nothing);
        assert_eq!(body.receive(&wire), Ok((300, Received::Whole)));
        assert_eq!((body.len(), body.count()), (0, 300));
    }

    #[test]
    fn a_large_body_is_mapped_and_a_small_one_is_not() {
        let mut body = Body::new(Length::Chunked, 8 << 20, Keep::UpToLimit);
        body.keep(&vec![b'x'; LARGE_BYTES]);
        assert!(body.bytes.capacity() < MAPPED_BYTES_MIN);
        body.keep(b"y");
        assert!(body.bytes.capacity() >= MAPPED_BYTES_MIN);
        assert_eq!(body.len(), LARGE_BYTES + 1);
    }
}
