use super::*;
use crate::store::Overall;

#[test]
fn waits_end_as_applied_gone_or_timed_out() {
    let progress = Progress::new(Processing::Here);
    let at = |segment, offset| Position { segment, offset };
    let (sender, outcomes) = std::sync::mpsc::channel();
    let wait = |position| {
        let sender = sender.clone();
        let later = Instant::now() + Duration::from_hours(1);
        progress.when_applied(
            position,
            later,
            Box::new(move |outcome| {
                sender.send((position, outcome)).expect("the test listens");
            }),
        );
    };
    wait(at(1, 10));
    wait(at(2, 10));
    wait(at(3, 10));
    assert!(outcomes.try_recv().is_err());
    let dead = [DeadSegment {
        number: 2,
        applied_bytes: 5,
    }];
    progress.publish(at(1, 10), &dead, Settled::default());
    assert_eq!(outcomes.try_recv(), Ok((at(1, 10), WaitOutcome::Applied)));
    assert_eq!(outcomes.try_recv(), Ok((at(2, 10), WaitOutcome::Gone)));
    assert!(outcomes.try_recv().is_err());
    wait(at(2, 5));
    assert_eq!(outcomes.try_recv(), Ok((at(2, 5), WaitOutcome::Applied)));
    progress.finish();
    assert_eq!(outcomes.try_recv(), Ok((at(3, 10), WaitOutcome::TimedOut)));
    let off = Progress::new(Processing::Elsewhere);
    assert_eq!(
        off.wait_applied(at(1, 1), Instant::now()),
        WaitOutcome::Unavailable
    );
}

#[test]
fn the_ledger_balances_between_commits() {
    let progress = Progress::new(Processing::Here);
    let ledger = Ledger {
        applied: 5,
        duplicates: 1,
        rejected: 2,
        corrupt: 3,
        ..Ledger::default()
    };
    let mut settled = Settled {
        ledger,
        overall: Overall::default(),
        lines: 7,
        tail_lines: 10,
        settled_before: 2,
        found_since: None,
    };
    progress.publish(
        Position {
            segment: 1,
            offset: 0,
        },
        &[],
        settled,
    );
    let seen = |tail_lines| {
        let (seen, run) = progress.ledger(|| tail_lines);
        assert_eq!(
            seen.lines.cast_signed(),
            seen.settled().cast_signed() + seen.pending.cast_signed() + seen.unaccounted
        );
        assert_eq!(
            run.found + run.appended.cast_signed(),
            run.settled + seen.pending.cast_signed() + seen.unaccounted
        );
        (seen.lines, seen.pending, seen.unaccounted)
    };
    // 11 are settled, of 7 lines at 10.
    assert_eq!(seen(20), (17, 6, 0));
    assert_eq!(seen(14), (11, 0, 0));
    assert_eq!(seen(13), (10, 0, -1), "more settled than counted");
    let (_, run) = progress.ledger(|| 20);
    assert_eq!((run.found, run.settled), (-5, 9));
    settled.ledger.unaccounted = 2;
    progress.publish(
        Position {
            segment: 1,
            offset: 0,
        },
        &[],
        settled,
    );
    assert_eq!(seen(20), (17, 4, 2));
}
