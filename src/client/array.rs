//! Splits JSON arrays into their elements, byte by byte and without a buffer of its own.
//!
//! It knows brackets, commas and strings only; the server decides whether an element is an event.
//! Between and after arrays, each line is an element. Elements are numbered in input order.

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first array or after one; only white space since the last line end.
    Outside,
    /// A line outside of arrays.
    Line,
    /// In an array, after `[` or `,`; an element is expected.
    Before,
    /// In an element of an array.
    Element,
    /// In an array, after an element; `,` or `]` is expected.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// An element from `start` to `end`, without white space around it.
    Element {
        /// Offset of its first byte.
        start: usize,
        /// Offset of the byte after its last.
        end: usize,
    },
    /// A comma or a bracket at this offset, with no element before it.
    Empty(usize),
    /// No complete element; more bytes are needed.
    More,
}

/// The state at the end of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// Offset of an element or line that has no end.
    pub(super) start: Option<usize>,
    /// An array has no closing bracket.
    pub(super) unclosed: bool,
}

/// Finds elements one after the other.
#[derive(Clone, Debug)]
pub(super) struct Cutter {
    at: At,
    /// Number of open brackets in the element.
    depth: u64,
    in_string: bool,
    escaped: bool,
    after_comma: bool,
    /// Offsets of the first byte of the current element or line, and of the byte after its last that
    /// is not white space.
    start: usize,
    end: usize,
}

impl Cutter {
    /// A cutter at the beginning of the input, or after an element or line.
    pub(super) fn new(in_array: bool) -> Self {
        Self {
            at: if in_array { At::After } else { At::Outside },
            depth: 0,
            in_string: false,
            escaped: false,
            after_comma: false,
            start: 0,
            end: 0,
        }
    }

    /// Whether the last cut was in an array.
    pub(super) fn in_array(&self) -> bool {
        !matches!(self.at, At::Outside | At::Line)
    }

    /// Adjusts the offsets after the bytes before `cut` were removed from the buffer.
    pub(super) fn moved(&mut self, cut: usize) {
        self.start = self.start.saturating_sub(cut);
        self.end = self.end.saturating_sub(cut);
    }

    /// Scans `bytes` from `*looked_at` to the next cut.
    pub(super) fn next(&mut self, bytes: &[u8], looked_at: &mut usize) -> Cut {
        while let Some(&byte) = bytes.get(*looked_at) {
            let here = *looked_at;
            match self.at {
                At::Element => {
                    if let Some(cut) = self.in_element(byte, here) {
                        // The delimiter is scanned again, after the element.
                        return cut;
                    }
                }
                At::Line => {
                    if byte == b'\n' {
                        self.at = At::Outside;
                        *looked_at += 1;
                        return Cut::Element {
                            start: self.start,
                            end: self.end,
                        };
                    }
                    self.text(byte, here);
                }
                _ if byte.is_ascii_whitespace() => {}
                At::Outside if byte == b'[' => {
                    self.at = At::Before;
                    self.after_comma = false;
                }
                At::After if byte == b',' => {
                    self.at = At::Before;
                    self.after_comma = true;
                }
                At::After | At::Before if byte == b']' => {
                    let trailing = self.at == At::Before && self.after_comma;
                    self.at = At::Outside;
                    if trailing {
                        *looked_at += 1;
                        return Cut::Empty(here);
                    }
                }
                At::Before if byte == b',' => {
                    self.after_comma = true;
                    *looked_at += 1;
                    return Cut::Empty(here);
                }
                at => {
                    self.at = if at == At::Outside {
                        At::Line
                    } else {
                        At::Element
                    };
                    self.start = here;
                    self.depth = 0;
                    continue; // scan the same byte again, as the first of an element or line
                }
            }
            *looked_at += 1;
        }
        Cut::More
    }

    fn in_element(&mut self, byte: u8, here: usize) -> Option<Cut> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b',' | b']' if self.depth == 0 => {
                    self.at = At::After;
                    return Some(Cut::Element {
                        start: self.start,
                        end: self.end,
                    });
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.text(byte, here);
        None
    }

    fn text(&mut self, byte: u8, here: usize) {
        if !byte.is_ascii_whitespace() {
            self.end = here + 1;
        }
    }

    pub(super) fn finish(&mut self) -> Rest {
        let under_way = matches!(self.at, At::Element | At::Line);
        let unclosed = self.in_array();
        self.at = At::Outside;
        Rest {
            start: under_way.then_some(self.start),
            unclosed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of `text`, read in chunks of `size` bytes; a missing element is an empty string.
    fn elements(text: &str, size: usize) -> (Vec<String>, Rest) {
        let mut cutter = Cutter::new(false);
        let (mut found, mut looked_at, mut known) = (Vec::new(), 0, 0);
        let bytes = text.as_bytes();
        loop {
            match cutter.next(&bytes[..known], &mut looked_at) {
                Cut::Element { start, end } => found.push(text[start..end].to_owned()),
                Cut::Empty(_) => found.push(String::new()),
                Cut::More if known == bytes.len() => break,
                Cut::More => known = (known + size).min(bytes.len()),
            }
        }
        let rest = cutter.finish();
        found.extend(rest.start.map(|start| text[start..].trim().to_owned()));
        (found, rest)
    }

    #[test]
    fn elements_are_cut_wherever_the_bytes_are() {
        let text = " [ {\"a\": [1, \"x\\\"],[\\\\\"]},\n{}\n, 7,[[2],3] ]\n[ ]\r\n[\"]\"]\nline, as it is \nlast";
        let expected = [
            "{\"a\": [1, \"x\\\"],[\\\\\"]}",
            "{}",
            "7",
            "[[2],3]",
            "\"]\"",
            "line, as it is",
            "last",
        ];
        for size in 1..text.len() {
            let (found, rest) = elements(text, size);
            assert_eq!(found, expected, "{size}");
            assert!(!rest.unclosed);
        }
    }

    #[test]
    fn broken_arrays_lose_nothing() {
        for (text, expected, unclosed) in [
            ("[1,,2,]", &["1", "", "2", ""][..], false),
            ("[,1]", &["", "1"], false),
            ("[1, 2", &["1", "2"], true),
            ("[1,", &["1"], true),
            ("[{} {}]", &["{} {}"], false),
            ("[", &[], true),
        ] {
            let (found, rest) = elements(text, 3);
            assert_eq!(
                (&found[..], rest.unclosed),
                (
                    &expected.iter().map(|&e| e.to_owned()).collect::<Vec<_>>()[..],
                    unclosed
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn reading_goes_on_after_an_element() {
        let mut cutter = Cutter::new(true);
        let mut looked_at = 0;
        let cut = cutter.next(b" , 2 ]", &mut looked_at);
        assert_eq!(cut, Cut::Element { start: 3, end: 4 });
        assert!(cutter.in_array());
    }
}
