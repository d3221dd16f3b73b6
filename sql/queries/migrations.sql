-- Which migrations were applied, with what content, and how old a relay may run on the result.

-- name: lock_migrations()
SELECT pg_advisory_xact_lock(7801001);

-- name: create_schema_versions()
CREATE TABLE IF NOT EXISTS schema_versions (
    migration_id TEXT PRIMARY KEY,
    checksum TEXT NOT NULL,
    oldest_relay TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

-- name: schema_versions_exist()
SELECT to_regclass('schema_versions') IS NOT NULL;

-- name: read_schema_versions()
SELECT migration_id, checksum, oldest_relay FROM schema_versions ORDER BY migration_id;

-- name: insert_schema_version(migration_id, checksum, oldest_relay)
INSERT INTO schema_versions (migration_id, checksum, oldest_relay) VALUES ($1, $2, $3);

-- name: delete_schema_version(migration_id)
DELETE FROM schema_versions WHERE migration_id = $1;

-- name: count_tables()
SELECT count(*) FROM pg_tables WHERE schemaname = 'public';

-- Connections of relays to this database, as they name themselves.
-- name: count_relay_connections()
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'orbital-relay %' AND pid <> pg_backend_pid();
