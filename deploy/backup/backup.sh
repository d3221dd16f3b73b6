#!/usr/bin/env bash
# Dump the database that DATABASE_URL names into a folder, compressed; keep the backups of the last days.
#   DATABASE_URL=postgresql://… backup.sh FOLDER [DAYS]
# Files (media_dir, or the bucket) are not in it: they are gone after a week; whoever wants them copies them after this.
# A dump that fails leaves no file that looks like a backup. pg_dump must be of the server's version or newer.
set -euo pipefail
umask 077

folder=${1:?usage: DATABASE_URL=… backup.sh FOLDER [DAYS]}
days=${2:-7}
: "${DATABASE_URL:?DATABASE_URL must name the database}"

mkdir -p "$folder"
name="$folder/orbital_$(date -u +%Y%m%d_%H%M%S).sql.gz"
partial="$name.partial"
trap 'rm -f "$partial"' EXIT

pg_dump --dbname="$DATABASE_URL" --no-owner --no-privileges | gzip >"$partial"
gzip --test "$partial"
mv "$partial" "$name"
find "$folder" -maxdepth 1 -name 'orbital_*.sql.gz' -mtime "+$days" -delete
echo "backup completed: $name"
