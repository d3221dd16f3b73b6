-- A user's new keys: one statement for each group that they are in, all of them or none.

-- name: list_memberships(user_id)
SELECT group_id FROM members WHERE user_id = $1;

-- In the order of their ids, as everyone who locks several. What is decided must be read by later statements.
-- name: lock_heads(group_ids)
SELECT 1 FROM group_heads WHERE group_id = ANY ($1::UUID[]) ORDER BY group_id FOR UPDATE;

-- Where groups stand, with the hash at each `base_seq`.
-- name: read_bases(group_ids, base_seqs)
SELECT h.group_id, h.last_seq, h.key_epoch, h.rekey_required, h.roster_seq, b.hash
FROM unnest($1::UUID[], $2::BIGINT[]) AS i(group_id, base_seq)
JOIN group_heads h ON h.group_id = i.group_id
LEFT JOIN events b ON b.group_id = i.group_id AND b.seq = i.base_seq;

-- What statement ids mean already, in any group.
-- name: find_statements(statement_ids)
SELECT o.object_id, o.group_id, e.statement, e.seq, e.hash
FROM objects o JOIN events e ON e.group_id = o.group_id AND e.seq = o.seq
WHERE o.object_id = ANY ($1::UUID[]);

-- name: user_had_keys(user_id, signing_key, rsa_thumbprint)
SELECT EXISTS (SELECT 1 FROM user_keys WHERE user_id = $1 AND signing_key = $2 AND rsa_thumbprint = $3);

-- name: count_user_keys(user_id)
SELECT count(*) FROM user_keys WHERE user_id = $1;

-- name: append_key_replacements(relay, user_id, group_ids, statement_ids, statements, signatures, field_hashes, content_hashes)
SELECT i.group_id, e.seq, e.hash, e.created_us, e.key_epoch
FROM unnest($3::UUID[], $4::UUID[], $5::BYTEA[], $6::BYTEA[], $7::BYTEA[], $8::BYTEA[])
    AS i(group_id, statement_id, statement, signature, field_hashes, content_hash)
CROSS JOIN LATERAL append_control_v1(
    $1, i.group_id, 13::SMALLINT, i.statement_id, $2, i.statement, i.signature, i.field_hashes, i.content_hash, TRUE) e;

-- The new keys are in force; a rekey is due in every group.
-- name: replace_keys(user_id, public_key, signing_key, rsa_thumbprint, group_ids)
WITH known AS (
    INSERT INTO user_keys (user_id, signing_key, rsa_thumbprint, public_key) VALUES ($1, $3, $4, $2)
), due AS (
    UPDATE group_heads SET rekey_required = TRUE WHERE group_id = ANY ($5::UUID[])
)
UPDATE users SET public_key = $2, signing_key = $3, rsa_thumbprint = $4 WHERE id = $1;
