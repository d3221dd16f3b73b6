-- Invite links, the standing code, and those who knock. A link is live until it is revoked, expired or used up.

-- name: insert_invite(invite_id, group_id, invite_code, invite_key, sealed_group_key, key_epoch, created_by, expires_at, max_uses)
INSERT INTO invites (invite_id, group_id, invite_code, invite_key, sealed_group_key, key_epoch, created_by, expires_at, max_uses)
VALUES ($1, $2, $3, $4, $5, $6, $7, from_us(nullif($8::BIGINT, 0)), nullif($9::BIGINT, 0));

-- name: find_invite(group_id, invite_id)
SELECT invite_code, invite_key, sealed_group_key IS NOT NULL, coalesce(to_us(expires_at), 0),
       revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), TRUE) AND coalesce(uses < max_uses, TRUE),
       revoked_at IS NOT NULL
FROM invites WHERE group_id = $1 AND invite_id = $2;

-- name: invite_exists(invite_id)
SELECT EXISTS (SELECT 1 FROM invites WHERE invite_id = $1);

-- A group's live links as its admins see them.
-- name: list_invites(group_id)
SELECT invite_id, invite_code, created_by, to_us(created_at), coalesce(to_us(expires_at), 0), coalesce(max_uses, 0), uses
FROM invites
WHERE group_id = $1
  AND revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), TRUE) AND coalesce(uses < max_uses, TRUE)
ORDER BY created_at, invite_id;

-- name: count_live_invites(group_id)
SELECT count(*) FROM invites
WHERE group_id = $1
  AND revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), TRUE) AND coalesce(uses < max_uses, TRUE);

-- name: use_invite(invite_id)
UPDATE invites SET uses = uses + 1 WHERE invite_id = $1;

-- name: revoke_invite(invite_id)
UPDATE invites SET revoked_at = clock_timestamp() WHERE invite_id = $1;

-- name: revoke_invites(group_id)
UPDATE invites SET revoked_at = clock_timestamp() WHERE group_id = $1 AND revoked_at IS NULL;

-- name: open_invite(invite_code)
SELECT i.group_id, i.invite_id, i.sealed_group_key, h.key_epoch, h.last_seq, h.head_hash
FROM invites i JOIN group_heads h ON h.group_id = i.group_id
WHERE i.invite_code = $1
  AND i.revoked_at IS NULL AND coalesce(i.expires_at > clock_timestamp(), TRUE) AND coalesce(i.uses < i.max_uses, TRUE);

-- The group behind a code that one may knock with, and the link's id and key where it is a link's.
-- name: find_door(invite_code)
SELECT id AS group_id, NULL::UUID AS invite_id, NULL::BYTEA AS invite_key
FROM groups WHERE invite_code = $1 AND knocking
UNION ALL
SELECT group_id, invite_id, invite_key
FROM invites
WHERE invite_code = $1
  AND revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), TRUE) AND coalesce(uses < max_uses, TRUE)
LIMIT 1;

-- name: code_exists(invite_code)
SELECT EXISTS (SELECT 1 FROM groups WHERE invite_code = $1) OR EXISTS (SELECT 1 FROM invites WHERE invite_code = $1);

-- name: count_join_requests(group_id)
SELECT count(*) FROM join_requests WHERE group_id = $1;

-- Whose request an id is.
-- name: find_request_owner(request_id)
SELECT group_id, user_id FROM join_requests WHERE request_id = $1;

-- A second knock replaces what the first one showed, and keeps its id.
-- name: put_join_request(request_id, group_id, user_id, invite_id, invite_signature)
INSERT INTO join_requests AS j (request_id, group_id, user_id, invite_id, invite_signature) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (group_id, user_id) DO UPDATE
SET invite_id = excluded.invite_id, invite_signature = excluded.invite_signature, created_at = clock_timestamp()
RETURNING j.request_id;

-- name: delete_join_request(group_id, user_id)
DELETE FROM join_requests WHERE group_id = $1 AND user_id = $2;

-- name: list_join_requests(group_id)
SELECT j.request_id, j.user_id, u.username, u.public_key, u.signing_key, u.is_bot, to_us(j.created_at), j.invite_id,
       j.invite_signature
FROM join_requests j JOIN users u ON u.id = j.user_id
WHERE j.group_id = $1 ORDER BY j.created_at, j.request_id;

-- One request, and the admins to show it to.
-- name: find_join_request(request_id)
SELECT j.request_id, j.user_id, u.username, u.public_key, u.signing_key, u.is_bot, to_us(j.created_at), j.invite_id,
       j.invite_signature, j.group_id,
       ARRAY(SELECT m.user_id FROM members m WHERE m.group_id = j.group_id AND m.role >= 2)
FROM join_requests j JOIN users u ON u.id = j.user_id WHERE j.request_id = $1;
