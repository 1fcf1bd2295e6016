//! What the README shows is true: its commands are understood, its calls answer as shown.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::harness::http::Request;
use super::harness::{Process, Scratch, Server, run, tallyline};

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(path).unwrap()
}

/// The lines of the README's code blocks of one kind, block by block.
fn blocks(kind: &str) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, Vec<String>)> = None;
    for line in readme().lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(found)) => open = Some((found == kind, Vec::new())),
            (Some(_), Some(_)) => {
                let (wanted, block) = open.take().unwrap();
                if wanted {
                    blocks.push(block);
                }
            }
            (Some((_, block)), None) => block.push(line.to_owned()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block without an end");
    blocks
}

/// A shell line's words up to a comment, pipe, redirection or `&`; quotes are taken off.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | '>' | '<' | '&' | ';') => break,
            (None, '#') if words.last().is_some_and(String::is_empty) => break,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Every `tallyline ...` of the README's shell blocks, as arguments.
fn command_lines() -> Vec<Vec<String>> {
    let shell = [blocks("sh"), blocks("console")].concat().concat();
    let mut lines = Vec::new();
    for line in &shell {
        let line = line
            .trim_start_matches("$ ")
            .replace("tallyline serve &", "tallyline serve");
        let words = words(&line);
        let args = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["tallyline", ..] => &words[1..],
            ["cargo", "run", "--release", "--", ..] => &words[4..],
            _ => continue,
        };
        lines.push(args.to_vec());
    }
    lines
}

#[test]
fn every_command_shown_is_understood() {
    // Red if the README shows a command or a flag that the program does not have (any more).
    let lines = command_lines();
    assert!(lines.len() > 15, "{lines:?}");
    for line in lines {
        // Arguments are read from left to right: --help at the end answers only if all before it
        // were understood.
        let mut args: Vec<&str> = line.iter().map(String::as_str).collect();
        args.push("--help");
        let ran = run(&args);
        assert_eq!(ran.code, Some(0), "tallyline {}: {ran}", line.join(" "));
    }
}

#[test]
fn the_two_commands_come_first() {
    // Red if a newcomer has to look for how to begin.
    let first: Vec<_> = blocks("sh").concat().into_iter().take(2).collect();
    assert!(
        first[0].starts_with("cargo run --release -- demo"),
        "{first:?}"
    );
    assert!(first[1].starts_with("cargo test"), "{first:?}");
}

/// The `--flags` that a help text defines.
fn flags(help: &str) -> BTreeSet<String> {
    // Two spaces further on, or far in, is the text of a flag, which may mention others.
    help.lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split("  ").next())
        .flat_map(|line| line.split([' ', ',', '=', '[', '.']))
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_flag_is_documented_and_no_other() {
    // Red if a flag is added without a word in the README, or one in the README's tables is gone.
    let readme = readme();
    let mut known = flags(&run(&["--help"]).expect(0).stdout);
    for command in [
        "demo", "serve", "send", "process", "verify", "backup", "restore", "query", "generate",
        "torture",
    ] {
        let found = flags(&run(&[command, "--help"]).expect(0).stdout);
        assert!(!found.is_empty(), "{command}");
        known.extend(found);
    }
    let missing: Vec<_> = known
        .iter()
        .filter(|flag| !readme.contains(&format!("`{flag}")))
        .collect();
    assert!(missing.is_empty(), "not in the README: {missing:?}");
    let shown = readme
        .lines()
        .filter(|line| line.starts_with("| `--"))
        .flat_map(|line| line.split('`'))
        .filter(|code| code.starts_with("--"))
        .map(|code| code.split([' ', '=']).next().unwrap().to_owned());
    for flag in shown {
        assert!(known.contains(&flag), "{flag} is in the README only");
    }
}

/// The part of curl that the README uses.
fn curl(words: &[String]) -> (Request, bool) {
    let mut method = None;
    let mut target = None;
    let mut headers = Vec::new();
    let mut body = None;
    let mut show_status = false;
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-s" => {}
            "-i" => show_status = true,
            "-X" => method = rest.next().cloned(),
            "-H" => headers.push(rest.next().unwrap().clone()),
            "-d" | "--data-binary" => body = rest.next().map(|text| text.replace("\\n", "\n")),
            url => {
                let path = url.trim_start_matches("http://");
                let path = path
                    .strip_prefix("localhost:8000")
                    .expect("the default port");
                target = Some(path.to_owned());
            }
        }
    }
    let default = if body.is_some() { "POST" } else { "GET" };
    let method = method.unwrap_or_else(|| default.to_owned());
    let mut request = Request::new(&method, &target.expect("a URL"));
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    (request.body(body.unwrap_or_default()), show_status)
}

/// Times and names differ from run to run: each becomes one word.
fn without_times(text: &str) -> String {
    let mut text = text.trim_end().to_owned();
    for field in ["\"updatedAt\":\"", "\"directory\":\""] {
        let mut out = String::new();
        let mut rest = &*text;
        while let Some(at) = rest.find(field) {
            let start = at + field.len();
            let end = start + rest[start..].find('"').unwrap();
            out.push_str(&rest[..start]);
            out.push_str("VARIES");
            rest = &rest[end..];
        }
        out.push_str(rest);
        text = out;
    }
    text
}

#[test]
fn the_calls_answer_as_shown() {
    // Red if an answer in the README is not what the server says today.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let mut calls = 0;
    for block in blocks("console") {
        let mut lines = block.iter().peekable();
        while let Some(line) = lines.next() {
            let Some(command) = line.strip_prefix("$ curl ") else {
                continue;
            };
            let mut shown = Vec::new();
            while let Some(answer) = lines.next_if(|line| !line.starts_with('$')) {
                shown.push(answer.as_str());
            }
            let (request, show_status) = curl(&words(command));
            let reply = server.ask(&request);
            let mut answer = reply.text();
            if show_status {
                answer = format!("{}\n{answer}", reply.status);
                let first = shown[0].split(' ').nth(1).unwrap();
                shown[0] = first;
            }
            assert_eq!(
                without_times(&answer),
                without_times(&shown.join("\n")),
                "{line}"
            );
            calls += 1;
        }
    }
    assert!(calls >= 8, "{calls} calls");
}

#[test]
fn the_demo_prints_what_is_shown() {
    // Red if the first thing a newcomer sees is not what the README promised.
    let scratch = Scratch::new();
    let mut demo = tallyline(&["demo", "--exit", "--listen", "127.0.0.1:0"]);
    let ran = Process::start(demo.current_dir(scratch.path())).finish();
    let totals = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("Sent "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let shown = blocks("console").remove(0);
    assert_eq!(shown[0], "$ tallyline demo --exit");
    assert_eq!(
        totals(&ran.expect(0).stdout),
        totals(&shown[1..].join("\n"))
    );
}

#[test]
fn every_guarantee_names_a_test_that_exists() {
    // Red if a promise is made that no test here would catch being broken.
    let readme = readme();
    let section = readme
        .split("\n## ")
        .find(|part| part.starts_with("Guarantees"));
    let promises = section.expect("a section of guarantees").lines();
    let mut tests = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["tests", "src"] {
        for path in super::harness::files_below(&root.join(dir)) {
            if path.extension().is_some_and(|ext| ext == "rs") {
                tests.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut count = 0;
    for row in promises.filter(|line| line.starts_with("| ") && !line.starts_with("| promise")) {
        let test = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        for name in test.split('`').skip(1).step_by(2) {
            let function = name.rsplit("::").next().unwrap();
            assert!(tests.contains(&format!("fn {function}(")), "{name}: {row}");
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
}
