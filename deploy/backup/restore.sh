#!/usr/bin/env bash
# Restore a backup into the EMPTY database that DATABASE_URL names, as one transaction: all of it or nothing.
#   DATABASE_URL=postgresql://… restore.sh BACKUP.sql.gz
# Stop every relay first. Clients that have seen more than the backup holds are told so (future_cursor), never lied to.
set -euo pipefail

backup=${1:?usage: DATABASE_URL=… restore.sh BACKUP.sql.gz}
: "${DATABASE_URL:?DATABASE_URL must name the database}"

gzip --test "$backup"
if [ "$(psql "$DATABASE_URL" --no-psqlrc -Atc "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")" != 0 ]; then
    echo "restore.sh: the database is not empty; nothing was changed" >&2
    exit 1
fi
gunzip --stdout "$backup" | psql "$DATABASE_URL" --no-psqlrc --quiet --single-transaction --set=ON_ERROR_STOP=1 >/dev/null
echo "restored: $backup"
echo "next: orbital-relay migrate status, orbital-relay log verify, orbital-relay media audit"
