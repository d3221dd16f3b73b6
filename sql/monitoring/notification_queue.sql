-- How full the queue of notifications is, from 0 to 1. It grows only while a listener is connected and does not read;
-- full, it fails every append. The oldest transactions of listeners name the laggard.
SELECT pg_notification_queue_usage() AS used,
       (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'orbital-relay listener%') AS listeners;
