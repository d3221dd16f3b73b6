-- Groups, their members and their keys. What changes them runs under the lock of the group's head.

-- name: insert_group(group_id, encrypted_name, created_by, invite_code, history)
WITH made AS (
    INSERT INTO groups (id, encrypted_name, created_by, invite_code, history) VALUES ($1, $2, $3, $4, $5) RETURNING id
)
INSERT INTO group_quotas (group_id) SELECT id FROM made;

-- name: list_groups(user_id)
SELECT m.group_id, g.encrypted_name, m.role, h.key_epoch, h.rekey_required, h.last_seq, h.head_hash
FROM members m
JOIN groups g ON g.id = m.group_id
JOIN group_heads h ON h.group_id = m.group_id
WHERE m.user_id = $1 ORDER BY m.group_id;

-- A group as its member sees it.
-- name: find_group(group_id, user_id)
SELECT g.encrypted_name, g.name_key_epoch, g.history, g.knocking, g.created_by, to_us(g.created_at), m.role,
       h.key_epoch, h.rekey_required, h.last_seq, h.head_hash,
       (SELECT count(*) FROM members c WHERE c.group_id = g.id), g.invite_code
FROM members m
JOIN groups g ON g.id = m.group_id
JOIN group_heads h ON h.group_id = m.group_id
WHERE m.group_id = $1 AND m.user_id = $2;

-- name: find_standing_code(group_id, user_id)
SELECT g.invite_code FROM groups g JOIN members m ON m.group_id = g.id AND m.user_id = $2 AND m.role >= 2 WHERE g.id = $1;

-- name: rename_group(group_id, encrypted_name, key_epoch)
UPDATE groups SET encrypted_name = $2, name_key_epoch = $3 WHERE id = $1;

-- name: rotate_code(group_id, invite_code, knocking)
UPDATE groups SET invite_code = $2, knocking = $3 WHERE id = $1;

-- name: transfer_group(group_id, old_owner, new_owner)
WITH handed_over AS (UPDATE groups SET created_by = $3 WHERE id = $1)
UPDATE members SET role = CASE user_id WHEN $3 THEN 3 ELSE 2 END WHERE group_id = $1 AND user_id IN ($2, $3);

-- name: bury_group(group_id)
SELECT bury_group_v1($1);

-- name: require_rekey(group_id)
UPDATE group_heads SET rekey_required = TRUE WHERE group_id = $1;

-- name: find_member(group_id, user_id)
SELECT m.role, u.signing_key, u.rsa_thumbprint, u.is_bot
FROM members m JOIN users u ON u.id = m.user_id WHERE m.group_id = $1 AND m.user_id = $2;

-- Members after a user id, with the head that they belong to; one row of nulls where there are none. No rows at all for
-- whoever is not a member.
-- name: list_members(group_id, caller_id, after_user_id, limit)
SELECT h.last_seq, h.head_hash, l.*
FROM members me
JOIN group_heads h ON h.group_id = me.group_id
LEFT JOIN LATERAL (
    SELECT u.id, u.username, m.role, u.public_key, u.signing_key, u.is_bot, to_us(m.joined_at)
    FROM members m JOIN users u ON u.id = m.user_id
    WHERE m.group_id = me.group_id AND m.user_id > $3
    ORDER BY m.user_id LIMIT $4
) l ON TRUE
WHERE me.group_id = $1 AND me.user_id = $2
ORDER BY l.id;

-- Who has to be given a new key, and for which RSA key.
-- name: list_recipients(group_id)
SELECT m.user_id, u.rsa_thumbprint FROM members m JOIN users u ON u.id = m.user_id WHERE m.group_id = $1;

-- The user's keys and groups stay as they are until the transaction ends. What depends on them is read afterwards.
-- name: lock_user(user_id)
SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE;

-- Somebody who wants to be a member, beside what the group is to them.
-- name: find_newcomer(group_id, user_id)
SELECT u.signing_key, u.rsa_thumbprint, u.is_bot,
       EXISTS (SELECT 1 FROM members m WHERE m.group_id = $1 AND m.user_id = u.id),
       EXISTS (SELECT 1 FROM bans b WHERE b.group_id = $1 AND b.user_id = u.id),
       EXISTS (SELECT 1 FROM join_requests j WHERE j.group_id = $1 AND j.user_id = u.id),
       (SELECT count(*) FROM members m WHERE m.user_id = u.id),
       (SELECT count(*) FROM members m WHERE m.group_id = $1)
FROM users u WHERE u.id = $2;

-- A request to be let in has served its purpose, whichever way its user came in.
-- name: insert_member(group_id, user_id, encrypted_group_key, role, key_epoch)
WITH joined AS (
    INSERT INTO members (group_id, user_id, encrypted_group_key, role) VALUES ($1, $2, $3, $4)
), answered AS (
    DELETE FROM join_requests WHERE group_id = $1 AND user_id = $2
)
INSERT INTO group_keys (group_id, user_id, key_epoch, encrypted_group_key) VALUES ($1, $2, $5, $3);

-- name: delete_member(group_id, user_id)
WITH gone AS (DELETE FROM members WHERE group_id = $1 AND user_id = $2)
UPDATE group_heads SET rekey_required = TRUE WHERE group_id = $1;

-- name: set_role(group_id, user_id, role)
UPDATE members SET role = $3 WHERE group_id = $1 AND user_id = $2;

-- name: insert_ban(group_id, user_id)
INSERT INTO bans (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: delete_ban(group_id, user_id)
DELETE FROM bans WHERE group_id = $1 AND user_id = $2;

-- name: ban_exists(group_id, user_id)
SELECT EXISTS (SELECT 1 FROM bans WHERE group_id = $1 AND user_id = $2);

-- A new key is in force: its wraps, the name sealed anew, and no link that could still open the old key.
-- name: rekey_group(group_id, key_epoch, encrypted_name, user_ids, encrypted_group_keys)
WITH head AS (
    UPDATE group_heads SET key_epoch = $2, rekey_required = FALSE WHERE group_id = $1
), renamed AS (
    UPDATE groups SET encrypted_name = $3, name_key_epoch = $2 WHERE id = $1
), unsealed AS (
    UPDATE invites SET sealed_group_key = NULL WHERE group_id = $1 AND sealed_group_key IS NOT NULL
), wraps AS (
    SELECT * FROM unnest($4::UUID[], $5::TEXT[]) AS w(user_id, encrypted_group_key)
), newest AS (
    UPDATE members m SET encrypted_group_key = w.encrypted_group_key
    FROM wraps w WHERE m.group_id = $1 AND m.user_id = w.user_id
)
INSERT INTO group_keys (group_id, user_id, key_epoch, encrypted_group_key)
SELECT $1, w.user_id, $2, w.encrypted_group_key FROM wraps w;

-- The wraps ever made for a member, of so many epochs after one; one row of nulls where there is none, no row for
-- whoever is not a member.
-- name: list_group_keys(group_id, user_id, after_key_epoch, epochs)
SELECT k.key_epoch, k.encrypted_group_key, to_us(k.created_at)
FROM members m
LEFT JOIN group_keys k ON k.group_id = m.group_id AND k.user_id = m.user_id AND k.key_epoch IN (
    SELECT DISTINCT key_epoch FROM group_keys WHERE group_id = $1 AND user_id = $2 AND key_epoch > $3
    ORDER BY key_epoch LIMIT $4)
WHERE m.group_id = $1 AND m.user_id = $2
ORDER BY k.key_epoch, k.id;

-- How many wraps of an epoch there are for somebody, and whether this one is among them.
-- name: count_wraps(group_id, user_id, key_epoch, encrypted_group_key)
SELECT count(*), coalesce(bool_or(encrypted_group_key = $4), FALSE)
FROM group_keys WHERE group_id = $1 AND user_id = $2 AND key_epoch = $3;

-- name: insert_wrap(group_id, user_id, key_epoch, encrypted_group_key)
WITH newest AS (
    UPDATE members m SET encrypted_group_key = $4
    FROM group_heads h
    WHERE h.group_id = $1 AND h.key_epoch = $3 AND m.group_id = $1 AND m.user_id = $2
)
INSERT INTO group_keys (group_id, user_id, key_epoch, encrypted_group_key) VALUES ($1, $2, $3, $4);

-- name: find_post(object_id)
SELECT group_id, author_id, kind, erased FROM objects WHERE object_id = $1;

-- The ciphertext goes; the event, its hashes and the replies stay.
-- name: erase_post(object_id)
WITH known AS (
    UPDATE objects SET erased = TRUE WHERE object_id = $1
), thread AS (
    UPDATE threads SET encrypted_title = '', encrypted_body = '', erased_at = clock_timestamp() WHERE id = $1
), reply AS (
    UPDATE replies SET encrypted_body = '', erased_at = clock_timestamp() WHERE id = $1
)
UPDATE annotations SET encrypted_body = '', erased_at = clock_timestamp() WHERE id = $1;
