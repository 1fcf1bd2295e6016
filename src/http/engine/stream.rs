//! A body that is produced while it is sent, so that its length is not bounded by memory.
//!
//! A handler answers with the head, the first piece and a [`PieceSource`] of the others. The I/O thread writes a
//! piece, and only when the client has read it, a thread that may block produces the next one. A slow client
//! therefore costs one piece of memory and no thread. To a client of HTTP/1.1 the body is sent in chunks. If
//! a piece cannot be produced, the connection is closed before the last chunk, which the client reports as
//! an incomplete response.

use super::MayBlock;

/// A piece of a body after the first one.
#[derive(Debug)]
pub enum Piece {
    /// More pieces follow. It must not be empty.
    More(Vec<u8>),
    /// The last piece; it may be empty.
    Last(Vec<u8>),
    /// The piece cannot be produced.
    Failed,
}

/// Produces the pieces of a body after the first one, until [`Piece::Last`] or [`Piece::Failed`].
pub type PieceSource = Box<dyn FnMut(&MayBlock) -> Piece + Send>;

/// The source of the rest of a body.
pub(super) struct Rest(pub(super) PieceSource);

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rest")
    }
}

/// How the end of a streamed body is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// By the last chunk.
    Chunked,
    /// By the end of the connection, for HTTP/1.0.
    UntilClosed,
}

impl Coding {
    /// Appends a piece as it is on the wire.
    pub(super) fn encode(self, piece: &[u8], is_last: bool, out: &mut Vec<u8>) {
        if self == Self::UntilClosed {
            return out.extend_from_slice(piece);
        }
        if !piece.is_empty() {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        if is_last {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
}
