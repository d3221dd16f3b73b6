-- What the tables take on disk, indexes and long values included.
SELECT relname AS table_name, pg_size_pretty(pg_total_relation_size(relid)) AS total,
       pg_size_pretty(pg_indexes_size(relid)) AS indexes, n_live_tup AS rows_about, n_dead_tup AS dead_rows_about,
       last_autovacuum
FROM pg_stat_user_tables
WHERE schemaname = 'public'
ORDER BY pg_total_relation_size(relid) DESC;
