//! The dependencies between modules, read from the tokens of `src/`: a new dependency needs a
//! change of these tables. Comments, strings and unit tests are not searched. A module, file or
//! home that is missing in the tables fails the test, and so does an entry that no longer exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A source file without its comments and unit tests.
struct Source {
    /// Relative to `src/`, such as `http/engine/mod.rs`.
    path: String,
    /// Its identifiers and punctuation, in order.
    tokens: Vec<String>,
    /// Its string literals as they are written in the source.
    strings: Vec<String>,
    first_line: String,
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rust_files(dir: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.insert(path);
        }
    }
}

/// Consecutive tokens, with brackets as tokens. Items after `#[cfg(test)]` are left out, except for
/// the names of modules declared so.
#[derive(Default)]
struct Tokens {
    list: Vec<String>,
    strings: Vec<String>,
    modules: Vec<String>,
    test_modules: Vec<String>,
}

impl Tokens {
    fn of(text: &str) -> Self {
        let mut tokens = Self::default();
        tokens.add(text.parse().unwrap());
        tokens
    }

    fn add(&mut self, stream: TokenStream) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            if is_test(&trees[at..]) {
                at = self.skip(&trees, at + 2);
                continue;
            }
            match &trees[at] {
                TokenTree::Group(group) => {
                    let (open, close) = match group.delimiter() {
                        Delimiter::Brace => ("{", "}"),
                        Delimiter::Bracket => ("[", "]"),
                        Delimiter::Parenthesis => ("(", ")"),
                        Delimiter::None => ("", ""),
                    };
                    self.list.push(open.to_owned());
                    self.add(group.stream());
                    self.list.push(close.to_owned());
                }
                TokenTree::Literal(literal) => self.strings.push(literal.to_string()),
                word => self.list.push(word.to_string()),
            }
            if let [
                TokenTree::Ident(word),
                TokenTree::Ident(name),
                TokenTree::Punct(end),
                ..,
            ] = &trees[at..]
                && word == "mod"
                && end.as_char() == ';'
            {
                self.modules.push(name.to_string());
            }
            at += 1;
        }
    }

    /// The index after the item at `at`.
    fn skip(&mut self, trees: &[TokenTree], mut at: usize) -> usize {
        let mut is_mod = false;
        while let Some(tree) = trees.get(at) {
            at += 1;
            match tree {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
                TokenTree::Punct(end) if end.as_char() == ';' => break,
                TokenTree::Ident(name) if is_mod => self.test_modules.push(name.to_string()),
                tree => is_mod = tree.to_string() == "mod",
            }
        }
        at
    }
}

/// Whether an item of the unit tests begins here.
fn is_test(trees: &[TokenTree]) -> bool {
    matches!(trees, [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]
        if hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// Collects the files of a module and of those declared in it; files of unit tests go to `tests`.
fn walk(path: &Path, sources: &mut Vec<Source>, reached: &mut BTreeSet<PathBuf>) {
    let text = fs::read_to_string(path).unwrap();
    let tokens = Tokens::of(&text);
    reached.insert(path.to_owned());
    let dir = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => path.with_file_name(""),
        Some(_) => path.with_extension(""),
    };
    let file = |name: &String| {
        [
            dir.join(format!("{name}.rs")),
            dir.join(name).join("mod.rs"),
        ]
        .into_iter()
        .find(|path| path.exists())
    };
    for path in tokens.test_modules.iter().filter_map(file) {
        reached.insert(path.clone());
        let below = path.with_extension("");
        if below.is_dir() {
            rust_files(&below, reached);
        }
    }
    sources.push(Source {
        path: path.strip_prefix(src()).unwrap().to_str().unwrap().into(),
        tokens: tokens.list,
        strings: tokens.strings,
        first_line: text.lines().next().unwrap_or_default().to_owned(),
    });
    for path in tokens.modules.iter().filter_map(file) {
        walk(&path, sources, reached);
    }
}

fn sources() -> Vec<Source> {
    let (mut sources, mut reached, mut all) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for root in ["lib.rs", "main.rs"] {
        walk(&src().join(root), &mut sources, &mut reached);
    }
    rust_files(&src(), &mut all);
    let strays: Vec<_> = all.difference(&reached).collect();
    assert!(strays.is_empty(), "files of no module: {strays:?}");
    sources
}

/// The module of a file: `http` for `http/engine.rs`, `event` for `event.rs`.
fn module(path: &str) -> &str {
    let top = path.split('/').next().unwrap_or(path);
    top.trim_end_matches(".rs")
}

/// The depth of a file in the module tree: 0 for the roots, 2 for `http/engine/mod.rs`.
fn depth(path: &str) -> usize {
    match path {
        "lib.rs" | "main.rs" => 0,
        path => path.trim_end_matches("/mod.rs").split('/').count(),
    }
}

/// Modules of this crate that the tokens of a file at this depth name: after `crate::`,
/// `tallyline::` or as many `super::` as lead to the root, also in braces. A root that gets another
/// name is `crate as`.
fn named_modules(tokens: &[String], depth: usize) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let mut supers = 0;
    for (at, word) in tokens.iter().enumerate() {
        supers = match word.as_str() {
            "super" => supers + 1,
            ":" => supers,
            _ => 0,
        };
        let is_root = match word.as_str() {
            "crate" | "tallyline" => true,
            "super" => supers == depth,
            _ => false,
        };
        if is_root && tokens.get(at + 1).is_some_and(|next| next == "as") {
            named.insert(format!("{word} as"));
        }
        if !is_root || !is_path(&tokens[at + 1..]) {
            continue;
        }
        let mut rest = &tokens[at + 3..];
        if rest.first().is_some_and(|first| first != "{") {
            named.extend(rest.first().cloned());
            continue;
        }
        // `{a, b::{c, d}}`: the first name of each part.
        let (mut depth, mut begins) = (0, true);
        while let Some((word, more)) = rest.split_first() {
            match word.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                "," => begins = depth == 1,
                name if begins && depth == 1 => {
                    named.insert(name.to_owned());
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
            rest = more;
        }
    }
    named
}

fn is_path(tokens: &[String]) -> bool {
    tokens.len() > 2 && tokens[0] == ":" && tokens[1] == ":"
}

/// Whether the tokens contain `word`, such as `thread::sleep`.
fn names(tokens: &[String], word: &str) -> bool {
    let parts: Vec<&str> = word.trim_end_matches("::").split("::").collect();
    let path: Vec<&str> = parts
        .iter()
        .flat_map(|part| [":", ":", part])
        .skip(2)
        .collect();
    let mut found = tokens.windows(path.len()).enumerate();
    found.any(|(at, window)| {
        window == path && (!word.ends_with("::") || is_path(&tokens[at + path.len()..]))
    })
}

/// Fails unless each word is used only in files whose path starts with one of its homes, and each
/// home uses it.
#[track_caller]
fn assert_at_home(rules: &[(&str, &[&str])]) {
    let sources = sources();
    let mut strays = Vec::new();
    for (word, homes) in rules {
        for home in *homes {
            let there =
                |source: &Source| source.path.starts_with(home) && names(&source.tokens, word);
            if !sources.iter().any(there) {
                strays.push(format!("{home}: does not use {word} any more"));
            }
        }
        for source in &sources {
            let at_home = homes.iter().any(|home| source.path.starts_with(home));
            if !at_home && names(&source.tokens, word) {
                strays.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert_eq!(strays, Vec::<String>::new());
}

#[test]
fn each_package_is_used_by_one_module() {
    // Fails if the HTTP engine, SQL, the client or the command line is used outside its module: the
    // engine could no longer be replaced in a day.
    assert_at_home(&[
        ("httparse", &["http/engine"]),
        ("mio", &["http/engine"]),
        ("slab", &["http/engine"]),
        ("socket2", &["http/engine"]),
        ("subtle", &["http"]),
        ("rusqlite", &["store"]),
        ("r2d2", &["store"]),
        ("scheduled_thread_pool", &["store"]),
        ("r2d2_sqlite", &["store"]),
        ("ureq", &["client"]),
        ("clap", &["cli", "commands/manual"]),
        ("clap_complete", &["cli", "commands/manual"]),
        ("clap_mangen", &["commands/manual"]),
        ("toml::", &["cli/config"]),
        ("signal_hook", &["shutdown.rs"]),
    ]);
}

#[test]
fn only_the_processor_writes_to_the_store() {
    // Fails if another module opens a database for writing. Then two parts could apply the same range, or a
    // write would not be made on the thread that owns the state derived from the database.
    assert_at_home(&[
        ("Writer::open", &["processor"]),
        ("Writer::of", &["processor"]),
    ]);
}

/// The modules that each module may use. To change this table is a design decision: see the
/// dependencies in `lib.rs`.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("aggregate", &["data_dir", "event"]),
    (
        "backup",
        &[
            "cli",
            "data_dir",
            "processor",
            "shutdown",
            "store",
            "timestamp",
        ],
    ),
    ("cli", &["data_dir", "http", "progress", "store"]),
    (
        "client",
        &["cli", "data_dir", "event", "shutdown", "timestamp"],
    ),
    (
        "commands",
        &[
            "backup",
            "cli",
            "client",
            "data_dir",
            "event",
            "http",
            "processor",
            "server",
            "shutdown",
            "store",
            "timestamp",
            "verify",
        ],
    ),
    ("data_dir", &["timestamp"]),
    ("event", &[]),
    ("health", &[]),
    ("histogram", &[]),
    (
        "http",
        &[
            "data_dir",
            "event",
            "health",
            "histogram",
            "journal",
            "other_nodes",
            "progress",
            "store",
            "timestamp",
        ],
    ),
    ("journal", &["data_dir", "health", "timestamp"]),
    ("lib", &[]),
    ("main", &["cli", "commands", "shutdown"]),
    (
        "processor",
        &[
            "aggregate",
            "data_dir",
            "event",
            "health",
            "journal",
            "progress",
            "store",
            "timestamp",
            "verify",
        ],
    ),
    ("other_nodes", &["data_dir", "store"]),
    ("progress", &["data_dir", "histogram", "store"]),
    (
        "server",
        &[
            "backup",
            "cli",
            "data_dir",
            "health",
            "http",
            "journal",
            "other_nodes",
            "processor",
            "progress",
            "shutdown",
            "store",
            "systemd",
        ],
    ),
    ("shutdown", &["data_dir"]),
    ("store", &["aggregate", "data_dir", "event"]),
    ("systemd", &[]),
    ("timestamp", &[]),
    ("verify", &["aggregate", "data_dir", "event", "store"]),
];

#[test]
fn dependencies_point_one_way() {
    // Fails if a module uses a module that is not in its list, or is not in the table.
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sources = sources();
    let modules: BTreeSet<&str> = sources.iter().map(|s| module(&s.path)).collect();
    for source in &sources {
        let mut named = named_modules(&source.tokens, depth(&source.path));
        // After `use crate as all` or `use crate::*` a module can be named without being found.
        let hides = |name: &&String| matches!(name.as_str(), "*" | "self") || name.ends_with(" as");
        assert_eq!(named.iter().find(hides), None, "in {}", source.path);
        // Items of the crate root are not a module.
        named.retain(|name| modules.contains(name.as_str()) && name != module(&source.path));
        found
            .entry(module(&source.path).to_owned())
            .or_default()
            .extend(named);
    }
    let mut decided: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, may_name) in MAY_NAME {
        let may_name = may_name.iter().map(|&name| name.to_owned());
        decided.insert((*module).to_owned(), may_name.collect());
    }
    assert_eq!(found, decided, "left: src/; right: this table");
}

#[test]
fn no_layer_depends_on_a_higher_one() {
    // Fails if the table above lets a lower layer use a higher one.
    let layers: [&[&str]; 7] = [
        &["event", "data_dir", "health", "histogram", "timestamp"],
        &["aggregate"],
        &["journal", "store"],
        &["other_nodes", "progress", "verify"],
        &["http", "processor", "client"],
        &["backup", "cli", "server"],
        &["commands", "main"],
    ];
    let layer = |name: &str| layers.iter().position(|layer| layer.contains(&name));
    let apart = [
        ("journal", "store"),
        ("http", "processor"),
        ("client", "http"),
        ("client", "processor"),
    ];
    for (module, may_name) in MAY_NAME {
        for other in *may_name {
            let higher = layer(module).is_some() && layer(other) > layer(module);
            let is = |pair: &(&str, &str)| [*pair, (pair.1, pair.0)].contains(&(*module, *other));
            // The client gets its configuration from `cli`.
            let given = (*module, *other) == ("client", "cli");
            assert!(
                given || !(higher || apart.iter().any(is)),
                "{module} uses {other}"
            );
        }
    }
}

#[test]
fn threads_have_names_and_do_not_poll_and_queues_are_bounded() {
    // Fails if a thread sleeps instead of waiting (a shutdown would have to wait for it), a queue
    // has no bound, a thread has no name, or a worker exits the process by itself.
    assert_at_home(&[
        // It kills at random times by design.
        ("thread::sleep", &["commands/torture"]),
        ("thread::spawn", &[]),
        // Bounded in bytes, which a channel cannot count.
        ("unbounded", &["journal"]),
        ("process::exit", &[]),
        // PGPASSWORD and its kin mean the same as with psql.
        ("env::var", &["cli/logging", "store/postgres"]),
    ]);
}

/// The names of threads in a source text, up to a number.
fn thread_names(text: &str) -> Vec<&str> {
    let builders = text.split("Builder::new()").skip(1);
    let named = builders.filter_map(|rest| {
        let (between, rest) = rest.split_once(".name(")?;
        between.trim().is_empty().then_some(rest)
    });
    named
        .filter_map(|rest| rest.split('"').nth(1))
        .map(|name| name.split('{').next().unwrap_or_default())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn every_thread_is_in_the_table_of_threads() {
    // Fails if a thread is started that the table in lib.rs does not have.
    let table = fs::read_to_string(src().join("lib.rs")).unwrap();
    let mut found = BTreeSet::new();
    for source in sources() {
        let text = fs::read_to_string(src().join(&source.path)).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        found.extend(thread_names(text).into_iter().map(str::to_owned));
    }
    assert!(found.len() > 10, "{found:?}");
    found.retain(|name| !table.contains(&format!("`{name}")));
    assert_eq!(found, BTreeSet::new());
}

#[test]
fn sql_statements_are_in_the_sql_directory() {
    // Fails if an SQL statement is written in Rust code instead of `sql/`.
    let mut found = Vec::new();
    for source in sources() {
        for text in &source.strings {
            let text = text.trim_start_matches(['r', 'b', '#', '"']);
            let verb = text.split(' ').next().unwrap_or_default();
            let statement = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE"].contains(&verb);
            // The catalogue of SQLite is not part of our schema.
            if statement && text.split(' ').count() > 2 && !text.contains("sqlite_schema") {
                found.push(format!("{}: {text}", source.path));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_module_has_documentation() {
    // Fails if a module has no module documentation.
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.first_line.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn the_search_matches_whole_words() {
    // Fails if the search of this file misses a word, or finds one that is not there.
    let tokens = |text: &str| Tokens::of(text).list;
    assert!(names(
        &tokens("use crate::data_dir::disk::Disk;"),
        "crate::data_dir::disk"
    ));
    assert!(!names(
        &tokens("use crate::data_dirs;"),
        "crate::data_dir::disk"
    ));
    assert!(!names(&tokens("my_toml::x()"), "toml::"));
    assert!(!names(&tokens("let toml = 1;"), "toml::"));
    assert!(
        names(&tokens("format!(\"{}\", toml::x())"), "toml::"),
        "in macros"
    );
    let text = "a(); // httparse\nb(\"httparse\"); #[cfg(test)] mod tests { httparse }\n#[cfg(test)]\nmod fake;\nmod real;";
    let found = Tokens::of(text);
    assert!(!names(&found.list, "httparse"), "{:?}", found.list);
    assert_eq!(
        (found.modules, found.test_modules),
        (
            vec!["real".to_owned()],
            vec!["tests".to_owned(), "fake".to_owned()]
        )
    );
    let named = |text: &str, depth| Vec::from_iter(named_modules(&tokens(text), depth));
    let all = named(
        "use crate::{a::{self, b}, c}; use crate::d; f(tallyline::e::x); super::x();",
        2,
    );
    assert_eq!(all, ["a", "c", "d", "e"]);
    let text = "use super::super::{a::x, b}; super::c::x()";
    assert_eq!(named(text, 2), ["a", "b"]);
    assert_eq!(named(text, 1), ["c", "super"]);
    let text = "use crate as all; use super::super as up; use tallyline::*; a as crate_";
    assert_eq!(named(text, 2), ["*", "crate as", "super as"]);
    assert_eq!(
        ["server.rs", "http/mod.rs", "http/engine/mod.rs"].map(depth),
        [1, 1, 2]
    );
}
