-- What groups' files use of what they may: bytes and files, uploads under way included. The fullest come first.
SELECT q.group_id, coalesce(f.files, 0) AS files, q.media_count - coalesce(f.files, 0) AS uploads,
       q.max_media_count AS max_files, pg_size_pretty(q.total_bytes) AS used, pg_size_pretty(q.max_bytes) AS may_use,
       round(100 * greatest(q.total_bytes::NUMERIC / nullif(q.max_bytes, 0),
                            q.media_count::NUMERIC / nullif(q.max_media_count, 0), 0))::INTEGER AS percent,
       f.next_expiry
FROM group_quotas q
LEFT JOIN (
    SELECT group_id, count(*)::INTEGER AS files, min(expires_at) AS next_expiry FROM media GROUP BY group_id
) f ON f.group_id = q.group_id
ORDER BY percent DESC, q.total_bytes DESC
LIMIT 50;
