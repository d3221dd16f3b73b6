-- Who waits for a lock, and for whom. Posts of one group wait for its head for a moment; whoever waits long is a finding.
SELECT w.pid, w.application_name, now() - w.query_start AS waiting_for, left(w.query, 80) AS waits_with,
       b.pid AS held_by_pid, b.application_name AS held_by, b.state AS holder_state, left(b.query, 80) AS holder_query
FROM pg_stat_activity w
CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS blocking(pid)
JOIN pg_stat_activity b ON b.pid = blocking.pid
WHERE w.datname = current_database()
ORDER BY waiting_for DESC;
