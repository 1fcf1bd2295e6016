//! A group of lines that is sent in one request, and the refusals among them.

use super::lines::Fault;
use super::post::LineError;
use super::rejects::Refusal;
use crate::event::Event;

/// A line that is ready to be sent.
pub(super) struct Ready<'a> {
    pub(super) number: u64,
    /// The line as in the input.
    pub(super) text: &'a [u8],
    /// Range of the line, with its id, in the buffer of all bodies.
    pub(super) body: std::ops::Range<usize>,
    /// Order in a body: 0 objects, 1 lines that cannot be mistaken, 2 lines with `{`, 3 with `[`.
    pub(super) rank: u8,
    pub(super) counts_once: bool,
}

/// The body of a request with the lines.
pub(super) fn joined(group: &[&Ready<'_>], bodies: &[u8]) -> Vec<u8> {
    let bytes = group.iter().map(|line| line.body.len() + 1).sum();
    let mut body = Vec::with_capacity(bytes);
    for (index, line) in group.iter().enumerate() {
        if index > 0 {
            body.push(b'\n');
        }
        body.extend_from_slice(&bodies[line.body.clone()]);
    }
    body
}

/// The lines of a group that are not among the refusals.
pub(super) fn without<'l, 'a>(group: &[&'l Ready<'a>], refusals: &[Refusal]) -> Vec<&'l Ready<'a>> {
    let is_refused = |line: &Ready<'_>| refusals.iter().any(|it| it.line == line.number);
    let others = group.iter().copied();
    others.filter(|line| !is_refused(line)).collect()
}

/// The refusals of an answer, by line of the input. An answer may name only some of its `refused`
/// lines. The others are found by parsing the events as the server does.
pub(super) fn named(group: &[&Ready<'_>], errors: &[LineError], refused: u64) -> Vec<Refusal> {
    let mut refusals: Vec<Refusal> = Vec::new();
    for error in errors {
        let index = usize::try_from(error.line).unwrap_or(0).wrapping_sub(1);
        let Some(line) = group.get(index) else {
            continue;
        };
        if refusals
            .last()
            .is_some_and(|refusal| refusal.line == line.number)
        {
            continue; // a line is reported once, with its first reason
        }
        refusals.push(Refusal {
            line: line.number,
            code: error.code.clone(),
            pointer: error.pointer.clone(),
            detail: error.detail.clone(),
            text: String::from_utf8_lossy(line.text).into_owned(),
        });
    }
    if (refusals.len() as u64) < refused {
        let known: std::collections::HashSet<u64> =
            refusals.iter().map(|refusal| refusal.line).collect();
        let unnamed = group
            .iter()
            .filter(|line| !known.contains(&line.number) && Event::parse(line.text).is_err());
        refusals.extend(unnamed.map(|line| refused_here(line)));
    }
    refusals
}

/// A refusal with the error found by parsing the line here.
pub(super) fn refused_here(line: &Ready<'_>) -> Refusal {
    match Event::parse(line.text) {
        Err(error) => Refusal {
            pointer: error.pointer.into_owned(),
            ..refusal(line.number, line.text, error.code, error.detail)
        },
        Ok(_) => refusal(line.number, line.text, "refused", "not an event".to_owned()),
    }
}

pub(super) fn refusal(number: u64, text: &[u8], code: &str, detail: String) -> Refusal {
    Refusal {
        line: number,
        code: code.to_owned(),
        pointer: String::new(),
        detail,
        text: String::from_utf8_lossy(text).into_owned(),
    }
}

/// The code and the description of a line that is not sent.
pub(super) fn code_and_detail(fault: Fault) -> (&'static str, String) {
    match fault {
        Fault::TooLong(length) => {
            let max = crate::event::LINE_BYTES_MAX;
            let detail = format!("the line has {length} bytes; the maximum is {max}");
            ("line_too_long", detail)
        }
        Fault::NoElement => (
            "not_json",
            "missing element before or after a comma of the array".to_owned(),
        ),
        Fault::Unclosed => (
            "not_json",
            "the array has no closing bracket; the file may be truncated".to_owned(),
        ),
    }
}
