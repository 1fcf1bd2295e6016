//! The README and the pages that it links to are correct: their commands parse, their requests get
//! the responses shown, and their links have a target.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::harness::http::Request;
use super::harness::{Process, Scratch, Server, files_below, run, tallyline};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    let path = root().join(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown file of the repository, relative to its root.
pub(crate) fn pages() -> Vec<String> {
    let below = ["data/deploy", "data/docs", "sql", "src", "tests"]
        .iter()
        .flat_map(|dir| files_below(&root().join(dir)))
        .map(|path| path.strip_prefix(root()).unwrap().to_owned());
    let mut pages: Vec<String> = std::iter::once(PathBuf::from("README.md"))
        .chain(below)
        .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
        .map(|path| path.to_str().unwrap().to_owned())
        .collect();
    pages.sort();
    pages
}

/// The lines of each code block of this kind on a page.
fn blocks(page: &str, kind: &str) -> Vec<Vec<String>> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, Vec<String>)> = None;
    for line in read(page).lines() {
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
    assert!(open.is_none(), "{page}: a code block without an end");
    blocks
}

/// The words of a shell line up to a comment, pipe, redirection or `&`; quotes are removed.
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

/// The arguments of every `tallyline ...` in the shell blocks of a page.
fn command_lines(page: &str) -> Vec<Vec<String>> {
    let shell = [blocks(page, "sh"), blocks(page, "console")]
        .concat()
        .concat();
    let mut lines = Vec::new();
    for line in &shell {
        let words = words(line.trim_start_matches("$ "));
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
    // Fails if a page shows a command or an option that the program does not have (any more).
    let lines: Vec<_> = pages()
        .iter()
        .flat_map(|page| command_lines(page))
        .collect();
    assert!(lines.len() > 20, "{lines:?}");
    for line in lines {
        // Arguments are parsed from left to right: --help at the end is only reached if everything
        // before it is valid.
        let mut args: Vec<&str> = line.iter().map(String::as_str).collect();
        args.push("--help");
        let ran = run(&args);
        assert_eq!(ran.code, Some(0), "tallyline {}: {ran}", line.join(" "));
    }
}

#[test]
fn the_readme_begins_with_the_demo() {
    // Fails if the README does not begin with the commands that a newcomer needs.
    let first: Vec<_> = blocks("README.md", "sh")
        .concat()
        .into_iter()
        .take(2)
        .collect();
    assert!(
        first[0].starts_with("cargo run --release -- demo"),
        "{first:?}"
    );
    assert!(first[1].starts_with("cargo test"), "{first:?}");
}

/// The `--options` that a help text defines.
fn flags(help: &str) -> BTreeSet<String> {
    // Lines with more indentation are descriptions, which may mention other options.
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
fn the_manual_page_has_every_flag_and_pages_name_no_unknown_one() {
    // Fails if an option is missing from the manual page, or if a page names an option that was
    // removed or renamed.
    let manual = run(&["man"]).expect(0).stdout.replace("\\-", "-");
    let mut known = flags(&run(&["--help"]).expect(0).stdout);
    for command in [
        "demo", "serve", "send", "process", "verify", "backup", "restore", "query", "ready",
        "rejected", "nodes", "generate", "torture",
    ] {
        let found = flags(&run(&[command, "--help"]).expect(0).stdout);
        assert!(!found.is_empty(), "{command}");
        known.extend(found);
    }
    let missing: Vec<_> = known
        .iter()
        .filter(|flag| !manual.contains(flag.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in the manual page: {missing:?}");
    let mut named = 0;
    for page in pages() {
        for code in read(&page).split('`').filter(|code| code.starts_with("--")) {
            let flag = code.split([' ', '=', '\n']).next().unwrap();
            let is_known = known.contains(flag) || flag == "--data-binary"; // curl's
            assert!(is_known, "{page}: no command has {flag}");
            named += 1;
        }
    }
    assert!(named > 15, "{named}");
}

/// The subset of curl that the pages use.
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

/// Times and names differ from run to run: each is replaced by a fixed word.
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
fn responses_are_as_shown() {
    // Fails if a response on a page differs from that of the server.
    let calls: usize = pages().iter().map(|page| check_calls(page)).sum();
    assert!(calls >= 12, "{calls} calls");
}

/// Sends the requests of a page to a new server. A request that is piped into jq or cut is sent; its
/// output is checked by `clients/readme.sh`.
fn check_calls(page: &str) -> usize {
    let blocks = blocks(page, "console");
    if blocks.is_empty() {
        return 0;
    }
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    let mut calls = 0;
    for block in blocks {
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
            if command.contains("| jq ") || command.contains("| cut ") {
                continue;
            }
            let mut answer = reply.text();
            if show_status {
                answer = format!("{}\n{answer}", reply.status);
                let first = shown[0].split(' ').nth(1).unwrap();
                shown[0] = first;
            }
            assert_eq!(
                without_times(&answer),
                without_times(&shown.join("\n")),
                "{page}: {line}"
            );
            calls += 1;
        }
    }
    calls
}

#[test]
fn the_demo_prints_what_is_shown() {
    // Fails if the output of the demo differs from the README.
    let scratch = Scratch::new();
    let mut demo = tallyline(&["demo", "--exit", "--listen", "127.0.0.1:0"]);
    let ran = Process::start(demo.current_dir(scratch.path())).finish();
    let totals = |text: &str| {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("Sent ") && !line.starts_with("Next: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let shown = blocks("README.md", "console").remove(0);
    assert_eq!(shown[0], "$ tallyline demo --exit");
    assert_eq!(
        totals(&ran.expect(0).stdout),
        totals(&shown[1..].join("\n"))
    );
}

#[test]
fn every_guarantee_names_a_test_that_exists() {
    // Fails if a guarantee names no test, or a test that does not exist.
    let page = read("tests/README.md");
    let section = page
        .split("\n## ")
        .find(|part| part.starts_with("Guarantees"));
    let promises = section.expect("a section of guarantees").lines();
    let mut tests = String::new();
    for dir in ["tests", "src"] {
        for path in files_below(&root().join(dir)) {
            if path.extension().is_some_and(|ext| ext == "rs") {
                tests.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut count = 0;
    for row in promises.filter(|line| line.starts_with("| ") && !line.starts_with("| guarantee")) {
        let test = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        for name in test.split('`').skip(1).step_by(2) {
            let function = name.rsplit("::").next().unwrap();
            assert!(tests.contains(&format!("fn {function}(")), "{name}: {row}");
            count += 1;
        }
    }
    assert!(count >= 50, "{count}");
}

#[test]
fn the_readme_has_at_most_200_lines() {
    // Fails if the README contains what belongs on another page.
    let lines = read("README.md").lines().count();
    assert!(lines <= 200, "{lines} lines");
}

/// The targets of a page's links and images, and the anchors of its headings.
fn links_and_anchors(page: &str) -> (Vec<String>, BTreeSet<String>) {
    let mut links = Vec::new();
    let mut anchors = BTreeSet::new();
    let mut in_code = false;
    for line in read(page).lines() {
        in_code ^= line.starts_with("```");
        if in_code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            links.push(rest.split(')').next().unwrap().to_owned());
        }
        if line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            anchors.insert(kept.collect::<String>().replace(' ', "-"));
        }
    }
    (links, anchors)
}

#[test]
fn every_relative_link_has_a_target() {
    // Fails if a page links to a file or a heading that does not exist.
    let mut count = 0;
    for page in pages() {
        for link in links_and_anchors(&page).0 {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => root().join(&page),
                file => root().join(&page).parent().unwrap().join(file),
            };
            assert!(target.exists(), "{page}: {link} does not exist");
            if !anchor.is_empty() {
                let target = target.canonicalize().unwrap();
                let relative = target.strip_prefix(root().canonicalize().unwrap()).unwrap();
                let anchors = links_and_anchors(relative.to_str().unwrap()).1;
                assert!(anchors.contains(anchor), "{page}: no heading for {link}");
            }
            count += 1;
        }
    }
    assert!(count > 15, "{count} links");
}

#[test]
fn every_page_is_linked_from_the_readme() {
    // Fails if a page cannot be reached from the README.
    let linked: BTreeSet<PathBuf> = links_and_anchors("README.md")
        .0
        .iter()
        .map(|link| root().join(link.split('#').next().unwrap()))
        .collect();
    for page in pages().iter().filter(|page| *page != "README.md") {
        assert!(linked.contains(&root().join(page)), "{page}");
    }
}
