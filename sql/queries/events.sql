-- Reading the log: each page is a range of seq within one group, ascending or descending.

-- What fan-out lacks: events of one group after a position, whoever listens.
-- name: read_events(group_id, after_seq, limit)
SELECT * FROM event_rows WHERE group_id = $1 AND seq > $2 ORDER BY seq LIMIT $3;

-- Pages of replays, for many who ask at once: asked is a user, a group, and a position in its log. Whoever asks for the
-- same stretch of a log shares it. Of each stretch at most so many events, and so many bytes of them unless it is a single
-- one, with the head of the group; without anything new a stretch is one row without an event. The first row of a stretch
-- has the numbers (from 1) of those who asked for it: only of members, checked in the statement that reads.
-- name: read_replay(user_ids, group_ids, after_seqs, limit, bytes)
SELECT e.*, h.last_seq, CASE WHEN e.bytes_before IS NULL THEN s.numbers END AS numbers
FROM (
    SELECT a.group_id, a.after_seq, array_agg(a.number) AS numbers
    FROM unnest($1::UUID[], $2::UUID[], $3::BIGINT[]) WITH ORDINALITY AS a(user_id, group_id, after_seq, number)
    JOIN members m ON m.group_id = a.group_id AND m.user_id = a.user_id
    GROUP BY a.group_id, a.after_seq
) s
JOIN group_heads h ON h.group_id = s.group_id
LEFT JOIN LATERAL (
    SELECT * FROM (
        SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                        + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                    OVER (ORDER BY v.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM (SELECT * FROM event_rows r WHERE r.group_id = s.group_id AND r.seq > s.after_seq
              ORDER BY r.seq LIMIT $4) v
    ) w
    WHERE coalesce(w.bytes_before, 0) < $5
) e ON true
ORDER BY s.group_id, s.after_seq, e.seq;

-- Where groups stand for users who want to subscribe, in the order given: with the hash at the cursor, and whether they
-- are members.
-- name: read_cursors(user_ids, group_ids, after_seqs)
SELECT s.group_id, h.last_seq, h.head_hash, h.deleted_at IS NOT NULL, m.user_id IS NOT NULL, e.hash
FROM unnest($1::UUID[], $2::UUID[], $3::BIGINT[]) WITH ORDINALITY AS s(user_id, group_id, after_seq, number)
LEFT JOIN group_heads h ON h.group_id = s.group_id
LEFT JOIN members m ON m.group_id = s.group_id AND m.user_id = s.user_id
LEFT JOIN events e ON e.group_id = s.group_id AND e.seq = s.after_seq
ORDER BY s.number;

-- Which of these groups the user is a member of.
-- name: read_memberships(user_id, group_ids)
SELECT m.group_id FROM members m WHERE m.user_id = $1 AND m.group_id = ANY ($2::UUID[]);

-- name: read_heads(group_ids)
SELECT group_id, last_seq, deleted_at IS NOT NULL FROM group_heads WHERE group_id = ANY ($1::UUID[]);

-- The head of a group and the hash at a position, for a member.
-- name: read_head_as_member(group_id, user_id, seq)
SELECT h.last_seq, h.head_hash, e.hash
FROM group_heads h
JOIN members m ON m.group_id = h.group_id AND m.user_id = $2
LEFT JOIN events e ON e.group_id = h.group_id AND e.seq = $3
WHERE h.group_id = $1 AND h.deleted_at IS NULL;

-- Pages hold at most so many events, and at most so many bytes of text (and one event); the last column is not a page's.

-- name: list_events_up(group_id, after_seq, before_seq, limit, bytes, kinds)
SELECT * FROM (
    SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                    + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                OVER (ORDER BY v.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (SELECT * FROM event_rows e
          WHERE e.group_id = $1 AND e.seq > $2 AND e.seq < $3
            AND ($6::SMALLINT[] IS NULL OR e.kind = ANY ($6::SMALLINT[])) ORDER BY e.seq LIMIT $4) v
) w
WHERE coalesce(w.bytes_before, 0) < $5 ORDER BY w.seq;

-- name: list_events_down(group_id, after_seq, before_seq, limit, bytes, kinds)
SELECT * FROM (
    SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                    + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                OVER (ORDER BY v.seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (SELECT * FROM event_rows e
          WHERE e.group_id = $1 AND e.seq > $2 AND e.seq < $3
            AND ($6::SMALLINT[] IS NULL OR e.kind = ANY ($6::SMALLINT[])) ORDER BY e.seq DESC LIMIT $4) v
) w
WHERE coalesce(w.bytes_before, 0) < $5 ORDER BY w.seq DESC;

-- name: list_threads_up(group_id, after_seq, before_seq, limit, bytes)
SELECT * FROM (
    SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                    + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                OVER (ORDER BY v.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (SELECT e.* FROM threads t JOIN event_rows e ON e.group_id = t.group_id AND e.seq = t.seq
          WHERE t.group_id = $1 AND t.seq > $2 AND t.seq < $3 ORDER BY t.seq LIMIT $4) v
) w
WHERE coalesce(w.bytes_before, 0) < $5 ORDER BY w.seq;

-- name: list_threads_down(group_id, after_seq, before_seq, limit, bytes)
SELECT * FROM (
    SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                    + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                OVER (ORDER BY v.seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (SELECT e.* FROM threads t JOIN event_rows e ON e.group_id = t.group_id AND e.seq = t.seq
          WHERE t.group_id = $1 AND t.seq > $2 AND t.seq < $3 ORDER BY t.seq DESC LIMIT $4) v
) w
WHERE coalesce(w.bytes_before, 0) < $5 ORDER BY w.seq DESC;

-- name: list_replies_up(group_id, after_seq, before_seq, limit, bytes, thread_id)
SELECT * FROM (
    SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                    + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                OVER (ORDER BY v.seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (SELECT e.* FROM replies r JOIN event_rows e ON e.group_id = r.group_id AND e.seq = r.seq
          WHERE r.thread_id = $6 AND r.group_id = $1 AND r.seq > $2 AND r.seq < $3 ORDER BY r.seq LIMIT $4) v
) w
WHERE coalesce(w.bytes_before, 0) < $5 ORDER BY w.seq;

-- name: list_replies_down(group_id, after_seq, before_seq, limit, bytes, thread_id)
SELECT * FROM (
    SELECT v.*, sum(coalesce(octet_length(v.encrypted_title), 0) + coalesce(octet_length(v.encrypted_body), 0)
                    + coalesce(octet_length(v.statement), 0) + coalesce(octet_length(v.encrypted_metadata), 0))
                OVER (ORDER BY v.seq DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
    FROM (SELECT e.* FROM replies r JOIN event_rows e ON e.group_id = r.group_id AND e.seq = r.seq
          WHERE r.thread_id = $6 AND r.group_id = $1 AND r.seq > $2 AND r.seq < $3 ORDER BY r.seq DESC LIMIT $4) v
) w
WHERE coalesce(w.bytes_before, 0) < $5 ORDER BY w.seq DESC;

-- Whether the thread is in this group.
-- name: find_thread(group_id, thread_id)
SELECT 1 FROM threads WHERE group_id = $1 AND id = $2;
