#!/bin/sh
# Backs up a running tallyline. Usage: backup.sh DATA_DIR NEW_DIR [URL]   (token: $TALLYLINE_TOKEN)
# Needs sqlite3 and curl. The order matters: the database first, then the files, so that the files
# know all that the database knows, and more; what is more is applied when the backup is used.
set -eu
data=$1 backup=$2 url=${3:-http://127.0.0.1:8000}

mkdir "$backup" "$backup/applied"
# A copy at one moment, by SQLite itself: copying the file would miss what is in revenue.db-wal.
sqlite3 -cmd '.timeout 30000' "$data/revenue.db" "VACUUM INTO '$backup/revenue.db'"
# Seals the active file, so that no file that is still written to has to be copied.
curl -fsS ${TALLYLINE_TOKEN:+-H "Authorization: Bearer $TALLYLINE_TOKEN"} -X POST "$url/flush" >/dev/null
# A file that moves to applied/ meanwhile is met twice, never missed; the second is the one to keep.
for file in "$data"/events[-_]*.jsonl; do
    cp -p "$file" "$backup/" 2>/dev/null || [ ! -e "$file" ]
done
cp -Rp "$data/applied/." "$backup/applied/"
find "$backup/applied" -name '*.jsonl' | while read -r file; do
    rm -f "$backup/${file##*/}"
done
[ ! -d "$data/quarantine" ] || cp -Rp "$data/quarantine" "$backup/"
sync
