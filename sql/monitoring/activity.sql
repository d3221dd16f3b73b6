-- Who is connected to this database, as what, and what they are doing. Relays name themselves: pool, lane, listener.
SELECT application_name, usename, state, wait_event_type, wait_event,
       now() - state_change AS in_this_state, now() - xact_start AS in_transaction, left(query, 100) AS last_query
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
ORDER BY application_name, xact_start NULLS LAST;
