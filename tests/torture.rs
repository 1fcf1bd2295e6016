//! `tallyline torture` itself: a few rounds find no lost and no duplicated event.

use super::harness::{Scratch, arg, files_below, run};

/// Runs it in a temporary directory; returns the table that it printed.
#[track_caller]
fn torture(rounds: &str, seed: &str) -> String {
    let scratch = Scratch::new();
    let dir = scratch.path().join("torture");
    let args = [
        "torture",
        "--dir",
        arg(&dir),
        "--rounds",
        rounds,
        "--seed",
        seed,
    ];
    let ran = run(&args).expect(0);
    let kept = files_below(&dir);
    assert!(
        kept.iter().any(|path| path.ends_with("revenue.db")),
        "it uses the given directory: {kept:?}"
    );
    ran.stdout
}

#[test]
fn a_few_rounds_of_torture_lose_and_duplicate_nothing() {
    // Fails if a kill -9 of the server, of senders or of both loses or duplicates an event.
    let table = torture("5", "1");
    assert!(table.contains("seed 1"), "{table}");
    let overlapping = table
        .lines()
        .find_map(|line| line.strip_prefix("... sent twice on purpose"))
        .and_then(|count| count.trim().parse::<u64>().ok());
    assert!(overlapping > Some(0), "no range of ids overlaps: {table}");
}

#[test]
#[ignore = "takes a minute"]
fn more_rounds_of_torture_lose_and_duplicate_nothing() {
    // As above, with a random seed, which the table contains.
    let seed = std::process::id().to_string();
    let reported = torture("20", &seed);
    assert!(reported.contains(&format!("seed {seed}")), "{reported}");
}
