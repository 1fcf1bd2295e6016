#!/bin/sh
# Puts a backup in place. Usage: restore.sh BACKUP DATA_DIR    (stop the server first)
# The database is replaced; files are added where they are missing, never replaced. What the files
# in DATA_DIR hold beyond the backup is applied at the next start.
set -eu
backup=$1 data=$2

mkdir -p "$data/applied"
for lock in serve.lock process.lock; do
    flock -n "$data/$lock" true || { echo "$data/$lock is held: stop tallyline first" >&2; exit 1; }
done
# The -wal belongs to the old database: next to another one it would damage it.
rm -f "$data/revenue.db" "$data/revenue.db-wal" "$data/revenue.db-shm" "$data/revenue.db-journal"
cp -p "$backup/revenue.db" "$data/revenue.db"
(cd "$backup" && find . -name 'events[-_]*.jsonl') | while read -r file; do
    name=${file##*/}
    [ -z "$(find "$data" -name "$name")" ] || continue
    mkdir -p "$(dirname "$data/$file")"
    cp -p "$backup/$file" "$data/$file"
done
sync
