-- What nobody needs any more. Each goes in batches, so that no statement takes long, by the database's clock.

-- One relay at a time sweeps; the others leave it to that one.
-- name: try_janitor_lock()
SELECT pg_try_advisory_xact_lock(hashtext('orbital janitor'));

-- Ended sessions are kept for a while: a refresh token that comes back late is still known to be one.
-- name: sweep_sessions(limit)
DELETE FROM sessions WHERE session_id IN (
    SELECT session_id FROM sessions
    WHERE expires_at < clock_timestamp() - INTERVAL '7 days' OR revoked_at < clock_timestamp() - INTERVAL '7 days'
    LIMIT $1);

-- name: sweep_login_attempts(limit)
DELETE FROM login_attempts WHERE subject IN (
    SELECT subject FROM login_attempts
    WHERE updated_at < clock_timestamp() - INTERVAL '1 day' AND blocked_until < clock_timestamp()
    LIMIT $1);

-- name: sweep_join_requests(limit)
DELETE FROM join_requests WHERE request_id IN (
    SELECT request_id FROM join_requests WHERE created_at < clock_timestamp() - INTERVAL '30 days' LIMIT $1);

-- name: sweep_bot_tokens(limit)
DELETE FROM bot_tokens WHERE token_id IN (
    SELECT token_id FROM bot_tokens WHERE expires_at < clock_timestamp() - INTERVAL '30 days' LIMIT $1);

-- A relay that is frozen reads no notifications, and holds up the queue of all of them: once it is full, every append
-- fails. A listener that hears sends itself an echo every few seconds; one that has sent nothing for long is frozen.
-- It listens again when it thaws.
-- name: free_notification_queue(usage, silent_s)
WITH laggards AS MATERIALIZED (
    SELECT pid FROM pg_stat_activity
    WHERE pg_notification_queue_usage() > $1 AND application_name LIKE 'orbital-relay listener %'
      AND datname = current_database() AND state_change < clock_timestamp() - $2::DOUBLE PRECISION * INTERVAL '1 second'
)
SELECT pid FROM laggards WHERE pg_terminate_backend(pid);
