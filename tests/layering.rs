//! Who may know whom: read from `src/`, so that a new dependency is a decision and not an accident.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file without its comments and its unit tests.
struct Source {
    /// Below `src/`, such as `http/engine.rs`.
    path: String,
    code: String,
    first_line: String,
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

/// Code only: without unit tests at the end and without comments.
fn code_of(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let opens_tests = |two: &[&str]| {
        two[0] == "#[cfg(test)]" && two[1].starts_with("mod ") && two[1].ends_with(['{', '}'])
    };
    let tests = lines.windows(2).position(opens_tests);
    lines[..tests.unwrap_or(lines.len())]
        .iter()
        .map(|line| line.trim_start())
        .filter(|line| !line.starts_with("//"))
        .map(|line| line.split(" // ").next().unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Files and directories that a file declares for its unit tests only.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let dir = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => path.with_file_name(""),
        Some(_) => path.with_extension(""),
    };
    let declared = |rest: &str| {
        let line = rest.lines().next()?;
        let name = line.strip_suffix(';')?.rsplit_once("mod ")?.1;
        Some([dir.join(name), dir.join(format!("{name}.rs"))])
    };
    text.split("#[cfg(test)]\n")
        .skip(1)
        .filter_map(declared)
        .flatten()
        .collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files.sort();
    let texts: Vec<_> = files
        .iter()
        .map(|path| (path, fs::read_to_string(path).unwrap()))
        .collect();
    let of_tests: Vec<_> = texts
        .iter()
        .flat_map(|(path, text)| test_files(path, text))
        .collect();
    let sources: Vec<_> = texts
        .iter()
        .filter(|(path, _)| !of_tests.iter().any(|file| path.starts_with(file)))
        .map(|(path, text)| Source {
            path: path.strip_prefix(&root).unwrap().to_str().unwrap().into(),
            code: code_of(text),
            first_line: text.lines().next().unwrap_or_default().to_owned(),
        })
        .collect();
    assert!(sources.len() > 5, "src/ was found");
    sources
}

/// The module a file belongs to: `http` of `http/engine.rs`, `event` of `event.rs`.
fn module(path: &str) -> &str {
    let top = path.split('/').next().unwrap_or(path);
    top.trim_end_matches(".rs")
}

/// Whether `code` names `word`, as a word of its own.
fn names(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// Fails unless each word is named only by files whose path starts with one of its homes.
#[track_caller]
fn assert_at_home(rules: &[(&str, &[&str])]) {
    let sources = sources();
    let mut strays = Vec::new();
    for (word, home) in rules {
        for source in &sources {
            let at_home = home.iter().any(|home| source.path.starts_with(home));
            if !at_home && names(&source.code, word) {
                strays.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert_eq!(strays, Vec::<String>::new());
}

#[test]
fn each_package_is_known_to_one_module() {
    // Red if the HTTP engine, SQL, the client or the command line leaks out of its module: another
    // engine could no longer be put in its place in a day.
    assert_at_home(&[
        ("httparse", &["http/engine"]),
        ("mio", &["http/engine"]),
        ("slab", &["http/engine"]),
        ("socket2", &["http/engine"]),
        ("subtle", &["http"]),
        ("rusqlite", &["store"]),
        ("r2d2", &["store"]),
        ("r2d2_sqlite", &["store"]),
        ("ureq", &["client"]),
        ("clap", &["cli", "manual", "main.rs"]),
        ("clap_complete", &["cli", "manual"]),
        ("clap_mangen", &["manual"]),
        ("toml::", &["config"]),
        ("signal_hook", &["signals", "stop.rs", "client/stop.rs"]),
    ]);
}

#[test]
fn dependencies_point_one_way() {
    // Red if a lower layer learns of a higher one. main > cli > config | serve > http, process >
    // journal, store > event, segment, fs; client > event.
    let top = ["cli", "serve", "client", "main", "demo", "torture"];
    let upper = [&top[..], &["http", "process"]].concat();
    let middle = [&upper[..], &["journal", "store"]].concat();
    let bottom = [&middle[..], &["event", "segment", "fs", "health"]].concat();
    let rules: [(&str, &[&[&str]]); 9] = [
        ("event", &[&bottom]),
        ("fs", &[&bottom]),
        ("segment", &[&bottom]),
        ("health", &[&bottom]),
        ("journal", &[&upper, &["store"]]),
        ("store", &[&upper, &["journal"]]),
        ("http", &[&top, &["process"]]),
        ("process", &[&top, &["http"]]),
        (
            "client",
            &[&["cli", "serve"], &["http", "process", "journal", "store"]],
        ),
    ];
    let sources = sources();
    let mut found = Vec::new();
    for (module_name, never) in rules {
        for source in sources.iter().filter(|s| module(&s.path) == module_name) {
            for other in never.concat().iter().filter(|other| **other != module_name) {
                if names(&source.code, &format!("crate::{other}")) {
                    found.push(format!("{}: crate::{other}", source.path));
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn nobody_polls_and_nothing_is_unbounded_or_unnamed() {
    // Red if a thread sleeps where it should wait (a stop would have to wait for it), a queue has no
    // bound, a thread no name, or a worker ends the process behind everybody's back.
    assert_at_home(&[
        // Their rhythm is what they are for.
        ("thread::sleep", &["torture.rs"]),
        ("thread::spawn", &[]),
        // Bounded in bytes, and by the pieces under way: what a channel can't count.
        ("unbounded", &["journal", "process/pool.rs"]),
        ("process::exit", &["main.rs", "serve", "signals"]),
        ("env::var", &["config", "cli", "logging"]),
    ]);
}

#[test]
fn sql_is_in_sql() {
    // Red if a statement hides among the code, where nobody who reads the schema will find it.
    let mut found = Vec::new();
    for source in sources() {
        let texts = source
            .code
            .lines()
            .flat_map(|line| line.split('"').skip(1).step_by(2));
        for text in texts {
            let verb = text.split(' ').next().unwrap_or_default();
            let statement = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE"].contains(&verb);
            // SQLite's own catalogue is not part of our schema.
            if statement && text.split(' ').count() > 2 && !text.contains("sqlite_schema") {
                found.push(format!("{}: {text}", source.path));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_file_says_what_it_is_for() {
    // Red if a module lacks the sentence that its reader starts with.
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.first_line.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn words_are_found_as_words() {
    // Red if this file's own search would miss a stray or invent one.
    assert!(names("use crate::fs::Disk;", "crate::fs"));
    assert!(!names("use crate::fsync;", "crate::fs"));
    assert!(!names("my_toml::x", "toml"));
    let text = "a\n// httparse\nb // httparse\n#[cfg(test)]\nmod tests { httparse }";
    assert_eq!(code_of(text), "a\nb");
    let text = "#[cfg(test)]\nmod fake;\nmod real;";
    assert_eq!(code_of(text), text);
    let tests = test_files(Path::new("src/http/mod.rs"), text);
    assert_eq!(
        tests,
        ["src/http/fake", "src/http/fake.rs"].map(PathBuf::from)
    );
}
