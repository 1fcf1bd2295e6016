//! The wording of everything that a person reads: Markdown pages, `--help`, the comments and messages
//! of the source and of the tests, SQL comments, the OpenAPI document, the status page and the
//! deployment files. Phrases that the project has replaced by standard terms must not come back.
//!
//! Only prose is searched. Names in code are not prose: text in backticks, quoted words without a
//! space, and everything outside comments and string literals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::harness::{files_below, run};
use super::readme;

/// A phrase that is not used, and what is used for it.
const PHRASES: &[(&str, &str)] = &[
    // Personification, and people where a program, a client or a thread is meant.
    ("anybody", "any client"),
    ("nobody", "no client, no thread, nothing"),
    ("somebody", "another program, a client"),
    ("whoever", "any client that"),
    ("those who", "clients that, requests that"),
    ("who wait", "waiting requests"),
    ("who waits", "a waiting request"),
    ("who waited", "the waiting requests"),
    ("is told", "is notified, receives"),
    ("are told", "are notified, receive"),
    ("be told", "be determined, be checked"),
    ("was told", "was notified"),
    ("were told", "were notified"),
    ("told of", "notified of, described"),
    ("has let", "has pruned, has expired"),
    ("refuse to believe", "reject"),
    ("is believed", "is trusted"),
    ("be believed", "be trusted"),
    ("was believed", "was trusted"),
    ("under us", "while the server runs"),
    // Private terms.
    ("the taking", "ingestion"),
    ("let go", "prune, expire, release"),
    ("lets go", "prunes, expires, releases"),
    ("letting go", "pruning, expiring, releasing"),
    ("untrusted", "corrupt"),
    ("distrust", "mark as corrupt"),
    ("untold", "inconclusive"),
    ("wholly applied", "fully applied"),
    ("from elsewhere", "imported"),
    ("at the door", "when it arrives"),
    ("the door", "the HTTP server"),
    ("front door", "the HTTP server"),
    ("is no event", "is not an event, is invalid"),
    ("are no events", "are not events, are invalid"),
    ("came to nothing", "were not counted"),
    ("come to nothing", "are not counted"),
    ("comes to nothing", "is not counted"),
    ("may come to", "may need"),
    ("what it comes to", "its sums"),
    ("what they come to", "their sums"),
    ("the fate of", "the status of"),
    ("whose fate", "whose status"),
    ("an id guards", "the deduplication window"),
    // Riddles.
    ("in words", "with the reason"),
    ("without a word", "silently"),
    ("looks at it again", "checks it again"),
    ("looked at again", "checked again"),
    ("goes on where", "continues where"),
    ("gone on with", "continued"),
    ("put together from", "mixed from"),
    ("made anew", "made again"),
    ("in hand", "in progress"),
];

/// How many hits a file may still have. The numbers may only become smaller; nothing is added.
const EXEMPT: &[(&str, usize)] = &[];

/// Files that are not prose: this one with its list of phrases, fuzzing inputs, and what other
/// programs create in `tests/`.
const IGNORED: &[&str] = &[
    "tests/prose.rs",
    "tests/browser/node_modules",
    "tests/fuzz/artifacts",
    "tests/fuzz/corpus",
    "tests/fuzz/coverage",
    "tests/fuzz/target",
];

/// The text without code: what is in backticks, and quoted words without a space.
fn without_code(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index % 2 == 0 {
            out.push_str(part);
        } else {
            out.push_str("CODE");
        }
    }
    let mut rest = out.as_str();
    let mut kept = String::new();
    while let Some((before, after)) = rest.split_once('"') {
        kept.push_str(before);
        match after.split_once('"') {
            Some((word, after)) if !word.contains(char::is_whitespace) => {
                kept.push_str("CODE");
                rest = after;
            }
            _ => {
                kept.push('"');
                rest = after;
            }
        }
    }
    kept + rest
}

/// The retired phrases in a text, in lower case; white space of any kind is one space.
fn hits(text: &str) -> Vec<&'static str> {
    let text = without_code(text).to_lowercase().replace('\u{2019}', "'");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (phrase, _) in PHRASES {
        for (at, _) in text.match_indices(phrase) {
            let before = text[..at].chars().next_back();
            let after = text[at + phrase.len()..].chars().next();
            if !before.is_some_and(is_word) && !after.is_some_and(is_word) {
                found.push(*phrase);
            }
        }
    }
    found
}

/// Comments and string literals of a program: `line` begins a comment, and in Rust `'` does not begin
/// a string. Comments on lines that follow each other are one text; so is a string.
fn comments_and_strings(source: &str, line: &str, quotes: &[char]) -> Vec<String> {
    let mut texts = vec![String::new()];
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        if let Some(comment) = rest.strip_prefix(line) {
            let end = comment.find('\n').unwrap_or(comment.len());
            let text = comment[..end].trim_start_matches(['/', '!', '-']);
            let last = texts.last_mut().unwrap();
            last.push(' ');
            last.push_str(text);
            rest = comment[end..].trim_start();
            if !rest.starts_with(line) {
                texts.push(String::new());
            }
        } else if let Some(text) = rest.strip_prefix("/*") {
            let (text, after) = text.split_once("*/").unwrap_or((text, ""));
            texts.push(text.to_owned());
            texts.push(String::new());
            rest = after;
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            let (text, after) = raw.split_once("\"#").unwrap_or((raw, ""));
            texts.push(text.to_owned());
            texts.push(String::new());
            rest = after;
        } else if quotes.contains(&c) {
            let (text, after) = string(&rest[1..], c);
            if text.trim().contains(' ') {
                texts.push(text);
                texts.push(String::new());
            }
            rest = after;
        } else if line == "//" && !quotes.contains(&'\'') && c == '\'' {
            // A character or a lifetime.
            let starts = [rest.get(..4), rest.get(..3)];
            let skip = match starts {
                [Some(escaped), _] if escaped.starts_with("'\\") => 4,
                [_, Some(plain)] if plain.ends_with('\'') => 3,
                _ => 1,
            };
            rest = &rest[skip..];
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    texts
}

/// A string literal up to its closing quote, and what follows. A line break that is escaped is left
/// out with the blanks after it.
fn string(text: &str, quote: char) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return (out, &text[at + 1..]);
        }
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some((_, 'n' | 't' | 'r')) => out.push(' '),
            Some((at, '\n')) => {
                let rest = text[at..].trim_start();
                let (tail, after) = string(rest, quote);
                return (out + &tail, after);
            }
            Some((_, escaped)) => out.push(escaped),
            None => {}
        }
    }
    (out, "")
}

/// The strings of a JSON text that are for people.
fn json_prose(text: &str) -> Vec<String> {
    fn walk(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Array(items) => items.iter().for_each(|item| walk(item, into)),
            serde_json::Value::Object(members) => {
                for (key, value) in members {
                    match value.as_str() {
                        Some(text)
                            if ["description", "detail", "legendFormat", "summary", "title"]
                                .contains(&key.as_str()) =>
                        {
                            into.push(text.to_owned());
                        }
                        _ => walk(value, into),
                    }
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::from_str(text).unwrap(), &mut found);
    found
}

/// The texts of a page, its labels, and the comments and messages of its script.
fn html_prose(text: &str) -> Vec<String> {
    let (head, rest) = text.split_once("<style>").unwrap_or(("", text));
    let body = rest.split_once("</style>").map_or(rest, |(_, body)| body);
    let (body, script) = body
        .split_once("<script type=\"module\">")
        .unwrap_or((body, ""));
    let mut found = comments_and_strings(script, "//", &['"', '\'', '`']);
    for markup in [head, body] {
        for tag in markup.split('<') {
            let (tag, text) = tag.split_once('>').unwrap_or(("", tag));
            found.push(text.to_owned());
            for label in ["aria-label=\"", "placeholder=\"", "title=\""] {
                if let Some((_, value)) = tag.split_once(label) {
                    found.push(value.split('"').next().unwrap().to_owned());
                }
            }
        }
    }
    found
}

/// The prose of a file, by what kind of file it is.
fn prose(path: &Path, text: &str) -> Vec<String> {
    match path.extension().and_then(|ext| ext.to_str()) {
        Some("rs") => comments_and_strings(text, "//", &['"']),
        Some("mjs") => comments_and_strings(text, "//", &['"', '\'', '`']),
        Some("sql") => comments_and_strings(text, "--", &[]),
        Some("json") => json_prose(text),
        Some("html") => html_prose(text),
        _ => vec![text.to_owned()],
    }
}

#[test]
fn prose_uses_the_standard_terms() {
    // Fails if a phrase that was replaced by a standard term is used again.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for page in readme::pages() {
        texts.entry(page).or_default();
    }
    for dir in ["data/deploy", "sql", "src", "tests"] {
        for path in files_below(&root.join(dir)) {
            let name = path.strip_prefix(root).unwrap();
            let is_text = name
                .extension()
                .is_none_or(|ext| ext != "png" && ext != "lock");
            if is_text && !IGNORED.iter().any(|ignored| name.starts_with(ignored)) {
                texts.entry(name.to_str().unwrap().to_owned()).or_default();
            }
        }
    }
    for (name, found) in &mut texts {
        let path = root.join(name);
        let text = fs::read_to_string(&path).unwrap();
        *found = prose(&path, &text);
    }
    for command in [
        "", "demo", "serve", "send", "process", "verify", "backup", "restore", "query", "rejected",
        "generate", "torture",
    ] {
        let args: Vec<_> = [command, "--help"]
            .into_iter()
            .filter(|arg| !arg.is_empty())
            .collect();
        let help = run(&args).expect(0).stdout;
        texts.insert(format!("tallyline {command} --help"), vec![help]);
    }

    let exempt: BTreeMap<&str, usize> = EXEMPT.iter().copied().collect();
    let mut report = String::new();
    let mut now = String::new();
    for (name, texts) in &texts {
        let found: Vec<_> = texts.iter().flat_map(|text| hits(text)).collect();
        if !found.is_empty() {
            now.push_str(&format!("    (\"{name}\", {}),\n", found.len()));
        }
        if found.len() > exempt.get(&**name).copied().unwrap_or(0) {
            let counted: BTreeMap<_, usize> =
                found.iter().fold(BTreeMap::new(), |mut map, phrase| {
                    *map.entry(*phrase).or_default() += 1;
                    map
                });
            report.push_str(&format!("{name}: {counted:?}\n"));
        }
    }
    let terms: BTreeMap<_, _> = PHRASES.iter().copied().collect();
    assert!(
        report.is_empty(),
        "retired phrases:\n{report}\nuse instead:\n{terms:#?}\nall hits of today:\n{now}"
    );
}

#[test]
fn every_kind_of_prose_is_read_and_code_is_not() {
    // Fails if the search above skips a kind of text, or searches code.
    let found = |name: &str, text: &str| {
        let texts = prose(Path::new(name), text);
        texts.iter().flat_map(|text| hits(text)).count()
    };
    for (name, text) in [
        ("a.md", "It is Let\ngo."),
        ("a.yml", "# it is let go"),
        ("a.rs", "/// What is let\n    /// go of."),
        ("a.rs", "let c = '\"'; // let go"),
        ("a.rs", "fn f<'a>() { say(\"what is let \\\n        go\") }"),
        ("a.rs", "const A: &str = r#\"{\"b\": \"it is let go\"}\"#;"),
        ("a.mjs", "check('it is let go'); // `let go`"),
        ("a.sql", "SELECT 1; -- what is\n-- let go"),
        ("a.json", r#"{"a": [{"description": "it is let go"}]}"#),
        ("a.html", "<style>a {}</style><p title=\"let go\">x</p>"),
        ("a.html", "<style>a {}</style><p>let go</p>"),
        (
            "a.html",
            "<style></style><script type=\"module\">say(`let go ${1}`);",
        ),
    ] {
        assert_eq!(found(name, text), 1, "{name}: {text}");
    }
    for (name, text) in [
        ("a.md", "the state `untrusted`, ids_let_go, outlet go"),
        ("a.rs", "let untrusted = \"untrusted\"; // `untrusted`"),
        ("a.sql", "SELECT untrusted -- another comment"),
        ("a.json", r#"{"untrusted": {"pattern": "let go"}}"#),
        ("a.html", "<style>.let go {}</style><p class=\"let go\">x"),
    ] {
        assert_eq!(found(name, text), 0, "{name}: {text}");
    }
}
