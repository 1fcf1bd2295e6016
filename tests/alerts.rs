//! The alerts of `data/deploy/alerts.yml`: what they query exists, and each is tested. `promtool` runs
//! the tests (tests/clients/deploy.sh).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::harness::{Scratch, Server, event};

fn repository(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The values after `key` in a YAML file, up to a comma, a bracket or the end of the line.
fn values<'t>(text: &'t str, key: &str) -> BTreeSet<&'t str> {
    let values = text.split(key).skip(1);
    values
        .filter_map(|rest| rest.split([',', '}', '\n']).next())
        .map(str::trim)
        .collect()
}

#[test]
fn the_alerts_query_series_that_a_server_has() {
    // Fails if an alert names a metric or a label value that does not exist, so that it never fires.
    let scratch = Scratch::new();
    let server = Server::start(&scratch.data());
    server.accept(event("u", 1));
    let metrics = server.get("/metrics").text();
    let alerts = repository("data/deploy/alerts.yml");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = 0;
    for (at, _) in alerts.match_indices("tallyline_") {
        let name = alerts[at..].split(|c| !is_name(c)).next().unwrap();
        let series: Vec<&str> = metrics
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .collect();
        assert!(!series.is_empty(), "no metric {name} in\n{metrics}");
        let Some(labels) = alerts[at + name.len()..].strip_prefix('{') else {
            continue;
        };
        for matcher in labels.split('}').next().unwrap().split(',') {
            let (label, values) = matcher.split_once('=').unwrap();
            for value in values.trim_start_matches('~').trim_matches('"').split('|') {
                let expected = format!("{label}=\"{value}\"");
                let exists = series.iter().any(|line| line.contains(&expected));
                assert!(exists, "no {name} with {expected} in\n{metrics}");
                found += 1;
            }
        }
    }
    assert!(found >= 4, "label values of the alerts: {found}");
}

#[test]
fn each_alert_is_tested_for_firing_and_for_not_firing() {
    // Fails if an alert is added without a series that makes it fire and one that must not.
    let alerts = repository("data/deploy/alerts.yml");
    let tests = repository("tests/clients/alerts_test.yml");
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for test in tests
        .split("- eval_time:")
        .flat_map(|test| test.split("- { eval_time:"))
    {
        let names = values(test, "alertname: ");
        if test.contains("exp_labels") {
            fires.extend(names);
        } else if test.contains("exp_alerts: []") {
            silent.extend(names);
        }
    }
    // One table of disks has those that fire and those that must not.
    silent.insert("TallylineDiskFull");
    let all = values(&alerts, "- alert: ");
    assert!(all.len() >= 10, "{all:?}");
    assert_eq!(fires, all, "with a series that makes it fire");
    assert_eq!(silent, all, "with a series that must not");
}
