-- The transactions that have been open for longest. They hold locks, and keep vacuum from cleaning up; a relay's own
-- last milliseconds, and an idle one of a relay is ended after five seconds.
SELECT pid, application_name, usename, state, now() - xact_start AS open_for, wait_event_type, wait_event,
       left(query, 100) AS last_query
FROM pg_stat_activity
WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
ORDER BY xact_start
LIMIT 20;
