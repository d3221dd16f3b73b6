-- What every request that changes a group begins and ends with: the lock, the reads under it, the append.

-- A new group's head. It is there at most once, deleted groups included: whoever comes second waits here and then sees
-- the first one's.
-- name: make_head(group_id)
INSERT INTO group_heads (group_id) VALUES ($1) ON CONFLICT DO NOTHING;

-- Whoever holds this lock is alone with the group until their transaction ends. A statement of its own: what is decided
-- must be read by later ones, which see what the lock waited for.
-- name: lock_head(group_id)
SELECT 1 FROM group_heads WHERE group_id = $1 FOR UPDATE;

-- Where the group and the actor stand, the hash of the event at `base_seq`, and what the statement's id already means.
-- name: read_standing(group_id, actor_id, base_seq, statement_id)
SELECT h.last_seq, h.key_epoch, h.rekey_required, h.roster_seq, g.history,
       u.signing_key, u.rsa_thumbprint, u.is_bot, m.role, b.hash,
       o.object_id IS NOT NULL, e.statement, e.seq, e.hash, to_us(e.created_at), e.key_epoch
FROM users u
LEFT JOIN group_heads h ON h.group_id = $1
LEFT JOIN groups g ON g.id = $1
LEFT JOIN members m ON m.group_id = $1 AND m.user_id = u.id
LEFT JOIN events b ON b.group_id = $1 AND b.seq = $3
LEFT JOIN objects o ON o.object_id = $4
LEFT JOIN events e ON e.group_id = o.group_id AND e.seq = o.seq
WHERE u.id = $2;

-- name: read_epoch(group_id)
SELECT key_epoch FROM group_heads WHERE group_id = $1;

-- name: append_control(relay, group_id, kind, object_id, actor_id, statement, signature, field_hashes, content_hash, changes_roster)
SELECT seq, hash, created_us, key_epoch FROM append_control_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);
