use super::*;
use crate::cli::args::{Cli, Command};
use clap::Parser as _;

fn args(flags: &[&str]) -> ServeArgs {
    let all = ["tallyline", "serve"].iter().chain(flags);
    match Cli::try_parse_from(all).expect("flags").command {
        Command::Serve(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn with_file(flags: &[&str], text: &str) -> Result<Effective, UsageError> {
    ServeConfig::effective(args(flags), Some((Path::new("t.toml"), text)))
}

fn config(flags: &[&str]) -> Result<ServeConfig, UsageError> {
    ServeConfig::effective(args(flags), None).map(|effective| effective.config)
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = "rotate-interval = \"10s\"\nrotate-size = 4096\nno-process = true\n";
    let effective = with_file(&["--rotate-interval", "2s"], file).expect("good");
    let config = &effective.config;
    assert_eq!(config.rotate_interval, Some(Duration::from_secs(2)));
    assert_eq!(config.rotate_size, 4096);
    assert_eq!(config.processing, Processing::Elsewhere);
    assert_eq!(config.flush_interval, Some(Duration::from_secs(1)));
    let off = with_file(&["--no-process=false"], file).expect("good");
    assert_eq!(off.config.processing, Processing::Here);
}

#[test]
fn a_config_for_tests_differs_from_no_flags_by_the_port_only() {
    let flags = ["--listen", "127.0.0.1:0", "--data-dir", "here"];
    assert_eq!(config(&flags).expect("good"), ServeConfig::at("here"));
}

#[test]
fn what_check_prints_is_a_config_file_of_the_same_meaning() {
    let flags = [
        "--rotate-size",
        "5000",
        "--dedup-window",
        "30days",
        "--data-dir",
        "a \"b\"",
    ];
    let effective = ServeConfig::effective(args(&flags), None).expect("good");
    let again = with_file(&[], &effective.to_string()).expect("own words");
    assert_eq!(again.config, effective.config);
}

#[test]
fn beyond_loopback_needs_tokens_or_no_auth() {
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let error = config(&["--listen", open]).expect_err(open).to_string();
        assert!(
            error.contains("--token-file") && error.contains("--no-auth"),
            "{error}"
        );
        let config = config(&["--listen", open, "--no-auth"]).expect(open);
        assert_eq!(config.access, Access::Anyone);
    }
    for closed in [
        "127.0.0.1:0",
        "127.9.9.9:0",
        "[::1]:0",
        "[::ffff:127.0.0.1]:0",
    ] {
        let config = config(&["--listen", closed]).expect(closed);
        assert_eq!(config.access, Access::Loopback);
    }
}

#[test]
fn out_of_range_is_refused_with_the_range() {
    for (flags, word) in [
        (["--rotate-interval", "9ms"], "10ms"),
        (["--flush-interval", "1ms"], "10ms"),
        (["--flush-interval", "forever"], "1day"),
        (["--flush-interval", "1000years"], "1day"),
        (["--max-body", "1"], "1KiB"),
        (["--keep-alive", "999ms"], "1s to 1h"),
        (["--keep-alive", "forever"], "1s to 1h"),
        (["--memory", "16MiB"], "32MiB"),
        (["--listen", "here"], "here:8000"),
        (["--listen", "9000"], "127.0.0.1:9000"),
        (["--listen", ":9000"], "127.0.0.1:9000"),
        (["--listen", "0.0.0.0"], "0.0.0.0:8000"),
        (["--listen", "::1"], "[::1]:8000"),
        (["--listen", "127.0.0.1:http"], "a number from 0 to 65535"),
        (
            ["--listen", "http://127.0.0.1:8000/"],
            "such as 127.0.0.1:8000",
        ),
        (["--data-dir", "/dev/null"], "not a directory"),
        (
            ["--token-file", "/nonexistent/tokens"],
            "/nonexistent/tokens",
        ),
    ] {
        let error = config(&flags).expect_err(flags[1]).to_string();
        assert!(error.contains(flags[0]) && error.contains(word), "{error}");
    }
}

#[test]
fn an_invalid_value_in_the_file_is_named_with_its_file() {
    let error = with_file(&[], "# here\nmemory = \"1MiB\"").expect_err("too small");
    let expected = "in the config file t.toml: memory 1MiB is out of range: from 32MiB to 1TiB";
    assert_eq!(error.to_string(), expected);
    let error = with_file(&["--memory", "2MiB"], "memory = \"1MiB\"").expect_err("too small");
    assert_eq!(
        error.to_string(),
        "--memory 2MiB is out of range: from 32MiB to 1TiB"
    );
    let error = with_file(&[], "# here\nmemory = true").expect_err("no size");
    let expected = "cannot read the config file t.toml: line 2: ";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[test]
fn an_unknown_key_in_the_file_is_named() {
    let error = with_file(&[], "rotate-evry = \"1s\"")
        .expect_err("unknown")
        .to_string();
    assert!(
        error.contains("rotate-evry") && error.contains("t.toml"),
        "{error}"
    );
    let renamed = with_file(&[], "keep-ids = \"1s\"").expect_err("unknown");
    let renamed = renamed.to_string();
    assert!(
        renamed.contains("did you mean `dedup-window`?"),
        "{renamed}"
    );
}
