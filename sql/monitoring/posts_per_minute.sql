-- Threads and replies a minute over the last hour; minutes without any are left out.
SELECT date_trunc('minute', created_at) AS minute, count(*) AS posts
FROM (
    SELECT created_at FROM threads WHERE created_at > now() - INTERVAL '1 hour'
    UNION ALL
    SELECT created_at FROM replies WHERE created_at > now() - INTERVAL '1 hour'
) recent
GROUP BY minute
ORDER BY minute DESC;
