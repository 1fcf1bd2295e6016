//! Creates the tables and checks their version.

use ::postgres::Client;

use super::Target;
use crate::store::StoreError;

const SCHEMA: &str = include_str!("../../../sql/postgres/schema.sql");

/// Creates the tables if the database has none, under an advisory lock.
pub(in crate::store) fn ensure(client: &mut Client, target: &Target) -> Result<(), StoreError> {
    let failed = target.failed("create its tables");
    let mut transaction = client.transaction().map_err(&failed)?;
    transaction
        .execute("SELECT pg_advisory_xact_lock(8386095523341006201)", &[])
        .map_err(&failed)?;
    let there = transaction
        .query_one(
            "SELECT to_regclass('tallyline.user_total') IS NOT NULL",
            &[],
        )
        .map_err(&failed)?;
    if !there.get::<_, bool>(0) {
        transaction
            .batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS tallyline;{SCHEMA}"))
            .map_err(&failed)?;
    }
    transaction.commit().map_err(&failed)
}

/// Whether the tables exist.
pub(in crate::store) fn is_there(client: &mut Client, target: &Target) -> Result<bool, StoreError> {
    let exists = client
        .query_typed_one("SELECT to_regclass('tallyline.node') IS NOT NULL", &[])
        .map_err(target.failed("read the version of its tables"))?;
    Ok(exists.get(0))
}
