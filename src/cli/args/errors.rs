//! The messages of an invalid command line: one sentence that says what to write, in the form of all
//! other errors of the program.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory as _};

use super::Cli;
use crate::store::Database;

/// Flags that were renamed: the former and the current name.
const RENAMED: [(&str, &str); 5] = [
    ("--flush-every", "--flush-interval"),
    ("--keep-ids", "--dedup-window"),
    ("--retain-for", "--retention"),
    ("--rotate-bytes", "--rotate-size"),
    ("--rotate-every", "--rotate-interval"),
];

/// Flags of similar programs: the commands, the flag, and what to write here. `VALUE` stands for the
/// value of the flag.
const FOREIGN: [(&[&str], &[&str], &str); 6] = [
    (
        &["serve", "demo"],
        &["--port", "-p"],
        "--listen 127.0.0.1:VALUE",
    ),
    (
        &["serve", "demo"],
        &["--host", "--bind", "--address", "--addr", "-b"],
        "--listen VALUE:8000",
    ),
    (
        &["send"],
        &["--url", "--server", "--host", "--endpoint", "-u"],
        "--to VALUE",
    ),
    (&["send", "process"], &["--file", "--input", "-f"], "VALUE"),
    (&["query"], &["--user", "--user-id", "-u"], "VALUE"),
    (
        &[],
        &["--data", "--dir", "--directory", "--db", "-d"],
        "--data-dir VALUE",
    ),
];

/// The environment variable of a flag: `TALLYLINE_DATA_DIR` for `--data-dir`.
fn variable_of(flag: &str) -> String {
    format!("TALLYLINE{}", &flag[1..].replace('-', "_").to_uppercase())
}

/// The current name of a renamed flag or config key. Both are written without dashes in front.
pub(crate) fn renamed(key: &str) -> Option<&'static str> {
    let (_, name) = RENAMED.iter().find(|(old, _)| &old[2..] == key)?;
    Some(&name[2..])
}

/// The error of an environment variable whose flag was renamed. It is not ignored: that could, for
/// example, turn retention off.
pub(super) fn renamed_variable() -> Option<clap::Error> {
    RENAMED.into_iter().find_map(|(old, name)| {
        let [old, name] = [old, name].map(variable_of);
        std::env::var_os(&old)?;
        let text = format!("unknown environment variable {old}; did you mean {name}?");
        Some(Cli::command().error(ErrorKind::UnknownArgument, text))
    })
}

/// The flags of the command whose values come from the environment, and their variables.
pub(super) fn variables_in_use(matches: &ArgMatches) -> Vec<(String, String)> {
    let mut command = &Cli::command();
    let mut matches = matches;
    while let Some((name, below)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else {
            break;
        };
        (command, matches) = (found, below);
    }
    let from_environment = |arg: &&clap::Arg| {
        let id = arg.get_id().as_str();
        matches.try_contains_id(id).is_ok()
            && matches.value_source(id) == Some(ValueSource::EnvVariable)
    };
    let named = |arg: &clap::Arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        Some((format!("--{}", arg.get_long()?), variable))
    };
    let args = command.get_arguments();
    args.filter(from_environment).filter_map(named).collect()
}

/// The message, with the name of its variable in place of each flag that was read from the environment.
pub fn with_variables(message: &str, variables: &[(String, String)]) -> String {
    let mut text = message.to_owned();
    for (flag, variable) in variables {
        let mut rest = std::mem::take(&mut text);
        while let Some(at) = rest.find(flag.as_str()) {
            let after = rest.split_off(at + flag.len());
            let is_longer = after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
            text.push_str(&rest[..at]);
            text.push_str(if is_longer { flag } else { variable });
            rest = after;
        }
        text.push_str(&rest);
    }
    text
}

/// Replaces the message of an error by one sentence, where there is one.
pub(super) fn reworded(error: clap::Error, command_line: &[OsString]) -> clap::Error {
    let mut root = Cli::command();
    root.build();
    let words: Vec<String> = command_line
        .iter()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let name = words.iter().find_map(|word| {
        let found = root.find_subcommand(word)?;
        Some(found.get_name().to_owned())
    });
    let Some(text) = message(&error, &root, name.as_deref().unwrap_or_default(), &words) else {
        return error;
    };
    let command = match &name {
        Some(name) => root.find_subcommand_mut(name),
        None => None,
    };
    match command {
        Some(command) => command.error(error.kind(), text),
        None => root.error(error.kind(), text),
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.last().cloned(), // the most similar one
        _ => None,
    }
}

/// The sentence for an error; `None`: clap's own message is kept.
fn message(error: &clap::Error, root: &Command, name: &str, words: &[String]) -> Option<String> {
    let did_you_mean = |found: Option<String>| match found {
        Some(found) => format!("; did you mean {found}?"),
        None => String::new(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = context(error, ContextKind::InvalidArg)?;
            if !flag.starts_with('-') {
                return Some(format!("unexpected argument {flag:?}"));
            }
            if flag == "--database" {
                return Some(without_database(name));
            }
            let suggested = foreign(name, &flag, words)
                .or_else(|| renamed(flag.trim_start_matches('-')).map(|name| format!("--{name}")))
                .or_else(|| context(error, ContextKind::SuggestedArg));
            Some(format!("unknown flag {flag}{}", did_you_mean(suggested)))
        }
        ErrorKind::InvalidSubcommand => {
            let given = context(error, ContextKind::InvalidSubcommand)?;
            let suggested = context(error, ContextKind::SuggestedSubcommand);
            // An alias of a command is shown as the command.
            let suggested = suggested.map(|word| {
                let found = root.find_subcommand(&word);
                format!("`{}`", found.map_or(word.as_str(), Command::get_name))
            });
            Some(format!(
                "unknown command {given:?}{}",
                did_you_mean(suggested)
            ))
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let arg = context(error, ContextKind::InvalidArg)?;
            let value = context(error, ContextKind::InvalidValue)?;
            let flag = arg.split([' ', '[', '=']).next().unwrap_or_default();
            let valid = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(valid)) => {
                    format!("the value must be {}", valid.join(" or "))
                }
                _ => std::error::Error::source(error)?.to_string(),
            };
            if value.is_empty() {
                return Some(format!("{flag} needs a value"));
            }
            let given = |word: &String| word == flag || word.starts_with(&format!("{flag}="));
            let shown = if words.iter().any(given) || !flag.starts_with('-') {
                flag.to_owned()
            } else {
                variable_of(flag)
            };
            Some(format!("{shown} {value:?}: {valid}"))
        }
        _ => None,
    }
}

/// The sentence for `--database` with a command that has no such flag.
fn without_database(command: &str) -> String {
    match command {
        "send" | "ready" => format!(
            "`{command}` has no --database: it asks a server, whose database is named by `tallyline serve --database`"
        ),
        "demo" => "`demo` has no --database: its totals are in an SQLite file; use `tallyline serve --database`".to_owned(),
        command => format!("`{command}` has no --database: it uses no totals"),
    }
}

/// Whether a word of the command line is a URL of a database, or a flag with one, that contains a password.
pub(super) fn has_password(word: &OsString) -> bool {
    let word = word.to_string_lossy();
    let url = word.strip_prefix("--database=").unwrap_or(&word);
    url.starts_with("postgres") && Database::parse(url).is_ok_and(|found| found.has_password())
}

/// What to write in place of a flag that other programs have.
fn foreign(command: &str, flag: &str, words: &[String]) -> Option<String> {
    let (_, _, write) = FOREIGN.iter().find(|(commands, flags, _)| {
        (commands.is_empty() || commands.contains(&command)) && flags.contains(&flag)
    })?;
    let has_data_dir = |command: &Command| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some("data-dir"))
    };
    if write.starts_with("--data-dir")
        && !Cli::command()
            .find_subcommand(command)
            .is_some_and(has_data_dir)
    {
        return None;
    }
    let value = words.iter().enumerate().find_map(|(at, word)| {
        let rest = word.strip_prefix(flag)?;
        let value = match rest.strip_prefix('=') {
            Some(value) => Some(value),
            None if rest.is_empty() => words.get(at + 1).map(String::as_str),
            None => None,
        };
        value.filter(|value| !value.is_empty() && !value.starts_with('-'))
    });
    let placeholder = if write.contains("127.0.0.1") {
        "8000"
    } else if write.ends_with(":8000") {
        "127.0.0.1"
    } else {
        "VALUE"
    };
    Some(write.replace("VALUE", value.unwrap_or(placeholder)))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn text_of(words: &[&str]) -> String {
        let words: Vec<OsString> = std::iter::once(&"tallyline")
            .chain(words)
            .map(OsString::from)
            .collect();
        let error = Cli::try_parse_from(&words).expect_err("invalid");
        let error = reworded(error, &words);
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn an_unknown_flag_or_command_names_the_right_one() {
        for (words, expected) in [
            (
                &["serve", "--rotate-evry", "1m"][..],
                "unknown flag --rotate-evry; did you mean --rotate-interval?",
            ),
            (
                &["serve", "--port", "9000"],
                "unknown flag --port; did you mean --listen 127.0.0.1:9000?",
            ),
            (
                &["serve", "--port=9000"],
                "unknown flag --port; did you mean --listen 127.0.0.1:9000?",
            ),
            (
                &["demo", "-p", "9000"],
                "unknown flag -p; did you mean --listen 127.0.0.1:9000?",
            ),
            (
                &["serve", "--port"],
                "unknown flag --port; did you mean --listen 127.0.0.1:8000?",
            ),
            (
                &["server", "--host", "0.0.0.0"],
                "unknown flag --host; did you mean --listen 0.0.0.0:8000?",
            ),
            (
                &["send", "--url", "http://h"],
                "unknown flag --url; did you mean --to http://h?",
            ),
            (
                &["send", "--file", "a.jsonl"],
                "unknown flag --file; did you mean a.jsonl?",
            ),
            (
                &["verify", "-d", "x"],
                "unknown flag -d; did you mean --data-dir x?",
            ),
            (&["generate", "-d", "x"], "unknown flag -d"),
            (&["serve", "--sideways"], "unknown flag --sideways"),
            (
                &["servr"],
                "unknown command \"servr\"; did you mean `serve`?",
            ),
            (
                &["sennd"],
                "unknown command \"sennd\"; did you mean `send`?",
            ),
            (
                &["clint"],
                "unknown command \"clint\"; did you mean `send`?",
            ),
            (&["verify", "data"], "unexpected argument \"data\""),
            (
                &["send", "--database", "postgres://h/d"],
                "`send` has no --database: it asks a server, whose database is named by `tallyline serve --database`",
            ),
            (
                &["demo", "--database=postgres://h/d"],
                "`demo` has no --database: its totals are in an SQLite file; use `tallyline serve --database`",
            ),
            (
                &["generate", "--database", "postgres://h/d"],
                "`generate` has no --database: it uses no totals",
            ),
        ] {
            assert_eq!(text_of(words), format!("error: {expected}"));
        }
    }

    #[test]
    fn an_invalid_value_is_shown_with_what_is_valid() {
        for (words, expected) in [
            (
                &["serve", "--no-auth=maybe"][..],
                "--no-auth \"maybe\": the value must be true or false",
            ),
            (
                &["send", "--batch", "0"],
                "--batch \"0\": number would be zero for non-zero type",
            ),
        ] {
            assert_eq!(text_of(words), format!("error: {expected}"));
        }
        let text = text_of(&["serve", "--rotate-interval", "soon"]);
        assert!(
            text.starts_with("error: --rotate-interval \"soon\": "),
            "{text}"
        );
        assert!(text.contains("write a duration such as"), "{text}");
    }

    #[test]
    fn a_renamed_flag_is_a_usage_error_with_its_new_name() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("it is there");
        for (old, name) in RENAMED {
            let text = text_of(&["serve", old, "1"]);
            assert_eq!(
                text,
                format!("error: unknown flag {old}; did you mean {name}?")
            );
            let mut flags = serve.get_arguments().filter_map(clap::Arg::get_long);
            assert!(flags.any(|flag| flag == &name[2..]), "{name} is not a flag");
        }
        assert_eq!(variable_of("--data-dir"), "TALLYLINE_DATA_DIR");
    }

    #[test]
    fn a_message_names_the_variables_that_were_read() {
        let variables = [("--to".to_owned(), "TALLYLINE_TO".to_owned())];
        for (message, expected) in [
            ("--to \"x\" is not a URL", "TALLYLINE_TO \"x\" is not a URL"),
            ("--token-file f, --to", "--token-file f, TALLYLINE_TO"),
            ("other", "other"),
        ] {
            assert_eq!(with_variables(message, &variables), expected);
        }
    }
}
