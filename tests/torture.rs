//! `tallyline torture` itself: that it proves what it says on this machine.

use super::harness::{Scratch, arg, files_below, run};

/// Runs it in a directory of its own; the table it printed.
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
        "it works where it is told to: {kept:?}"
    );
    ran.stdout
}

#[test]
fn a_few_rounds_of_torture_lose_and_double_nothing() {
    // Red if a kill -9 of the server, of senders or of both loses or doubles an event.
    let said = torture("5", "1");
    assert!(said.contains("seed 1"), "{said}");
    let overlapping = said
        .lines()
        .find_map(|line| line.strip_prefix("... sent twice on purpose"))
        .and_then(|count| count.trim().parse::<u64>().ok());
    assert!(overlapping > Some(0), "no range of ids overlaps: {said}");
}

#[test]
#[ignore = "takes a minute"]
fn more_rounds_of_torture_lose_and_double_nothing() {
    // As above, with a seed of the moment: the table names it.
    let seed = std::process::id().to_string();
    let said = torture("20", &seed);
    assert!(said.contains(&format!("seed {seed}")), "{said}");
}
