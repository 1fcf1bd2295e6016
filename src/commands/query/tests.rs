use super::format::{csv, json_overall, table};
use super::totals::Unapplied;
use crate::event::Micros;
use crate::store::{Ledger, Overall, UserTotal};

fn user(user_id: &str, micros: i64) -> UserTotal {
    UserTotal {
        user_id: user_id.to_owned(),
        revenue: micros.into(),
        events: 2,
        updated_at_ms: 1_795_329_660_123,
    }
}

#[test]
fn a_table_is_aligned() {
    let text = table(&[user("café", 50_000_000), user("b", -1_500_000)]);
    assert_eq!(
        text,
        "USER  REVENUE  EVENTS  UPDATED\n\
         café       50       2  2026-11-22T06:41:00.123Z\n\
         b        -1.5       2  2026-11-22T06:41:00.123Z\n"
    );
}

#[test]
fn json_has_the_amounts_own_digits() {
    let users = [user("u", 9_007_199_254_740_993)];
    let overall = Overall {
        users: 1,
        events: 2,
        revenue: Micros(9_007_199_254_740_993),
        updated_at_ms: Some(1_795_329_660_123),
    };
    let text =
        json_overall(&overall, Ledger::default(), &Unapplied::default(), &users).expect("json");
    assert_eq!(text.matches(": 9007199254.740993").count(), 2, "{text}");
    assert_eq!(
        text.matches("\"revenueMicros\": \"9007199254740993\"")
            .count(),
        2,
        "{text}"
    );
    let updated = "\"updatedAt\": \"2026-11-22T06:41:00.123Z\"";
    assert_eq!(text.matches(updated).count(), 2, "{text}");
}

#[test]
fn csv_quotes_what_must_be() {
    let text = csv(&[user("a,\"b\"", 0)]).expect("csv");
    assert!(
        text.starts_with("userId,revenue,revenueMicros,events,updatedAt\n\"a,\"\"b\"\"\",0,0,2,"),
        "{text}"
    );
}
