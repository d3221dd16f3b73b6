-- Media: files, uploads, quotas. What a request decides under locks is in sql/migrations/0005_media.sql.

-- ── uploads ──────────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: begin_upload(media_id, group_id, thread_id, user_id, size_bytes, encryption_iv, storage_url, max_uploads)
SELECT error, durable_bytes, generation, free_bytes, free_count
FROM begin_upload_v1($1, $2, $3, $4, $5, $6, $7, $8);

-- An upload of the caller's, and how much of it is durable.
-- name: find_upload(media_id, user_id)
SELECT media_id, group_id, thread_id, user_id, size_bytes, encryption_iv, storage_url, store_state, generation, next_part,
       durable_bytes
FROM uploads WHERE media_id = $1 AND user_id = $2;

-- name: list_parts(media_id)
SELECT part, generation, first_byte, size_bytes, tag, digests FROM upload_parts WHERE media_id = $1 ORDER BY first_byte;

-- What the store calls the upload, once it has been told of it; the first one to say so is right. Here and below the blob
-- is named too: an upload may be dropped and begun anew under the same id.
-- name: set_store_state(media_id, generation, storage_url, store_state)
UPDATE uploads SET store_state = coalesce(store_state, $4)
WHERE media_id = $1 AND generation = $2 AND storage_url = $3 RETURNING store_state;

-- A part that the store has. No row where the upload is gone, or was begun again since.
-- name: record_part(media_id, generation, storage_url, part, first_byte, size_bytes, tag, digests)
WITH moved AS (
    UPDATE uploads SET durable_bytes = $5 + $6, next_part = $4 + 1, updated_at = clock_timestamp()
    WHERE media_id = $1 AND generation = $2 AND storage_url = $3 AND durable_bytes = $5 AND next_part = $4
    RETURNING media_id
)
INSERT INTO upload_parts (media_id, generation, part, first_byte, size_bytes, tag, digests)
SELECT media_id, $2, $4, $5, $6, $7, $8 FROM moved RETURNING part;

-- Triggers return the quota and have the blob deleted.
-- Whatever upload there is of this name; or the one with this blob, which may have been begun anew since.
-- name: drop_upload(media_id, user_id, storage_url)
DELETE FROM uploads WHERE media_id = $1 AND user_id = $2 AND storage_url = COALESCE($3, storage_url) RETURNING group_id;

-- name: commit_upload(relay, media_id, group_id, user_id, storage_url, key_epoch, metadata, root, fields, content)
SELECT error, seq, hash, created_us, content_hash, duplicate
FROM commit_upload_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- A file that the caller has committed before, in a group that they are in.
-- name: find_committed(media_id, user_id)
SELECT e.group_id, e.seq, e.hash, to_us(e.created_at), e.content_hash
FROM objects o
JOIN members m ON m.group_id = o.group_id AND m.user_id = $2
JOIN events e ON e.group_id = o.group_id AND e.seq = o.seq
WHERE o.object_id = $1 AND o.author_id = $2 AND o.kind = 18;

-- ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Where a file's bytes are, for a member: with whether its time has come, row or no row. Membership is checked in the
-- statement that reads.
-- name: find_blob(media_id, user_id)
SELECT o.group_id, f.storage_url, f.size_bytes, coalesce(f.expires_at <= clock_timestamp(), o.expired, FALSE)
FROM objects o
JOIN members m ON m.group_id = o.group_id AND m.user_id = $2
LEFT JOIN media f ON f.id = o.object_id
WHERE o.object_id = $1 AND o.kind = 18 AND (f.id IS NOT NULL OR o.expired);

-- name: find_media(media_id, user_id)
SELECT o.group_id, f.id, f.thread_id, f.seq, f.key_epoch, f.encrypted_metadata, f.encryption_iv, f.size_bytes, f.root,
       to_us(f.uploaded_at), to_us(f.expires_at), f.author_id, d.user_id IS NOT NULL, f.storage_url,
       coalesce(f.expires_at <= clock_timestamp(), o.expired, FALSE)
FROM objects o
JOIN members m ON m.group_id = o.group_id AND m.user_id = $2
LEFT JOIN media f ON f.id = o.object_id
LEFT JOIN media_downloads d ON d.media_id = f.id AND d.user_id = $2
WHERE o.object_id = $1 AND o.kind = 18 AND (f.id IS NOT NULL OR o.expired);

-- Pages by seq; the caller is a member.

-- name: list_media_up(group_id, user_id, thread_id, after_seq, before_seq, limit)
SELECT f.group_id, f.id, f.thread_id, f.seq, f.key_epoch, f.encrypted_metadata, f.encryption_iv, f.size_bytes, f.root,
       to_us(f.uploaded_at), to_us(f.expires_at), f.author_id, d.user_id IS NOT NULL
FROM media f
LEFT JOIN media_downloads d ON d.media_id = f.id AND d.user_id = $2
WHERE f.group_id = $1 AND ($3::UUID IS NULL OR f.thread_id = $3) AND f.seq > $4 AND f.seq < $5
  AND f.expires_at > clock_timestamp()
ORDER BY f.seq LIMIT $6;

-- name: list_media_down(group_id, user_id, thread_id, after_seq, before_seq, limit)
SELECT f.group_id, f.id, f.thread_id, f.seq, f.key_epoch, f.encrypted_metadata, f.encryption_iv, f.size_bytes, f.root,
       to_us(f.uploaded_at), to_us(f.expires_at), f.author_id, d.user_id IS NOT NULL
FROM media f
LEFT JOIN media_downloads d ON d.media_id = f.id AND d.user_id = $2
WHERE f.group_id = $1 AND ($3::UUID IS NULL OR f.thread_id = $3) AND f.seq > $4 AND f.seq < $5
  AND f.expires_at > clock_timestamp()
ORDER BY f.seq DESC LIMIT $6;

-- Somebody has read a file to its end.
-- name: record_download(media_id, user_id)
INSERT INTO media_downloads (media_id, user_id)
SELECT f.id, u.id FROM media f, users u WHERE f.id = $1 AND u.id = $2 FOR KEY SHARE
ON CONFLICT DO NOTHING;

-- Under the lock of the group's head, after the statement that says so.
-- name: delete_media(media_id)
WITH known AS (UPDATE objects SET erased = TRUE WHERE object_id = $1)
DELETE FROM media WHERE id = $1;

-- ── quotas ───────────────────────────────────────────────────────────────────────────────────────────────────────────

-- name: read_quota(group_id, user_id)
SELECT q.total_bytes, q.media_count, q.max_bytes, q.max_media_count
FROM group_quotas q JOIN members m ON m.group_id = q.group_id AND m.user_id = $2 WHERE q.group_id = $1;

-- ── what goes ────────────────────────────────────────────────────────────────────────────────────────────────────────

-- One relay at a time; the others leave it to that one.
-- name: try_media_lock()
SELECT pg_try_advisory_xact_lock(hashtext('orbital media'));

-- name: expire_media(relay, media_ids, limit)
SELECT group_id, kind, object_id, seq, hash, created_us, key_epoch FROM expire_media_v1($1, $2, $3);

-- Nobody has gone on with these for long.
-- name: sweep_uploads(limit, idle_s)
DELETE FROM uploads WHERE media_id IN (
    SELECT media_id FROM uploads
    WHERE updated_at < clock_timestamp() - $2::DOUBLE PRECISION * INTERVAL '1 second'
    LIMIT $1)
AND updated_at < clock_timestamp() - $2::DOUBLE PRECISION * INTERVAL '1 second';

-- name: list_blob_deletions(limit)
SELECT storage_url, is_deleted FROM blob_deletions WHERE due_at <= clock_timestamp() ORDER BY due_at LIMIT $1;

-- The store would not have it deleted: later again, and meanwhile others.
-- name: postpone_blob_deletion(storage_url, wait_s)
UPDATE blob_deletions SET due_at = clock_timestamp() + $2::DOUBLE PRECISION * INTERVAL '1 second' WHERE storage_url = $1;

-- It is deleted: look again after a while.
-- name: set_blob_deleted(storage_url, wait_s)
UPDATE blob_deletions
SET is_deleted = TRUE, due_at = clock_timestamp() + $2::DOUBLE PRECISION * INTERVAL '1 second' WHERE storage_url = $1;

-- It was deleted once more, after that while.
-- name: forget_blob(storage_url)
DELETE FROM blob_deletions WHERE storage_url = $1;

-- name: count_media_rows()
SELECT (SELECT count(*) FROM media) + (SELECT count(*) FROM uploads)
    + (SELECT count(*) FROM blob_deletions WHERE NOT is_deleted);
