//! Cuts JSON arrays into their elements, byte by byte and in no memory of its own.
//!
//! Only brackets, commas and strings are understood: whether an element is an event is for the
//! server to say. Between and after arrays, lines are lines. An element's number is its place.

/// Where an array's text is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first array or after one, with nothing but white space since the last line end.
    Outside,
    /// In a line outside of arrays.
    Line,
    /// In an array, after `[` or `,`: an element comes.
    Before,
    /// In an element.
    Element,
    /// In an array, after an element: `,` or `]` comes.
    After,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// An element from `start` to `end`; neither has white space around it.
    Element {
        /// Its first byte.
        start: usize,
        /// The byte after its last.
        end: usize,
    },
    /// A comma or a bracket with no element before it, and where it is.
    Empty(usize),
    /// More bytes are needed.
    More,
}

/// What is left at the end of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// Where an element, or a line, under way begins.
    pub(super) start: Option<usize>,
    /// The array's closing bracket did not come.
    pub(super) unclosed: bool,
}

/// Reads on from where the last cut was made.
#[derive(Clone, Debug)]
pub(super) struct Cutter {
    at: At,
    /// Brackets open in the element.
    depth: u64,
    in_string: bool,
    escaped: bool,
    after_comma: bool,
    /// The first byte of the element or line under way, and the byte after its last that is no
    /// white space.
    start: usize,
    end: usize,
}

impl Cutter {
    /// At the input's beginning, or after an element or a line of it.
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

    /// Whether the place after the last cut is in an array.
    pub(super) fn in_array(&self) -> bool {
        !matches!(self.at, At::Outside | At::Line)
    }

    /// The bytes before `cut` are gone: what follows has moved to the front.
    pub(super) fn moved(&mut self, cut: usize) {
        self.start = self.start.saturating_sub(cut);
        self.end = self.end.saturating_sub(cut);
    }

    /// Reads `bytes` from `*looked_at` on, to the next cut.
    pub(super) fn next(&mut self, bytes: &[u8], looked_at: &mut usize) -> Cut {
        while let Some(&byte) = bytes.get(*looked_at) {
            let here = *looked_at;
            match self.at {
                At::Element => {
                    if let Some(cut) = self.in_element(byte, here) {
                        // The delimiter is read again, after the element.
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
                    continue; // the same byte once more, as the first of what it begins
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

    /// The input has come to its end.
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

    /// The elements of `text`, given in pieces of `size` bytes; an empty one for a missing one.
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
