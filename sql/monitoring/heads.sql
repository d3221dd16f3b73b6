-- The busiest groups: how long their logs are, how many members they have, and the posts of the last hour.
SELECT h.group_id, h.last_seq, h.key_epoch, h.rekey_required,
       (SELECT count(*) FROM members m WHERE m.group_id = h.group_id) AS members,
       coalesce(p.posts, 0) AS posts_last_hour
FROM group_heads h
LEFT JOIN (
    SELECT group_id, count(*) AS posts
    FROM (
        SELECT group_id FROM threads WHERE created_at > now() - INTERVAL '1 hour'
        UNION ALL
        SELECT group_id FROM replies WHERE created_at > now() - INTERVAL '1 hour'
    ) recent
    GROUP BY group_id
) p ON p.group_id = h.group_id
WHERE h.deleted_at IS NULL
ORDER BY posts_last_hour DESC, h.last_seq DESC
LIMIT 50;
