-- Media: uploads, the blobs that are to go, and the functions that reserve, commit and expire
-- depends: 0004_people
-- oldest relay: 0.1.0

-- migrate: apply

-- Nothing could be put into this table before. `root` is the hash over the file's segments, as it was committed.
ALTER TABLE media ADD COLUMN root BYTEA NOT NULL;

-- What was erased because its time had come, and not because somebody deleted it.
ALTER TABLE objects ADD COLUMN expired BOOLEAN;

-- Files on their way. Their bytes are reserved in group_quotas. An upload belongs to a membership: it goes with it.
-- `generation` counts begins, and a write under an older one is refused. `next_part` goes up with each part, and by as many
-- as a relay writes at once with each begin, so that a straggler's parts have numbers, in the store too, that nobody else
-- uses.
CREATE TABLE uploads (
    media_id UUID PRIMARY KEY,
    group_id UUID NOT NULL,
    user_id UUID NOT NULL,
    thread_id UUID NOT NULL REFERENCES threads(id) ON DELETE CASCADE,
    size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
    encryption_iv VARCHAR(32) NOT NULL,
    storage_url TEXT NOT NULL UNIQUE,
    store_state TEXT,
    generation BIGINT NOT NULL DEFAULT 1,
    next_part INTEGER NOT NULL DEFAULT 1,
    durable_bytes BIGINT NOT NULL DEFAULT 0,
    committed BOOLEAN NOT NULL DEFAULT FALSE,
    started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (group_id, user_id) REFERENCES members(group_id, user_id) ON DELETE CASCADE
);
CREATE INDEX idx_uploads_member ON uploads(group_id, user_id);
CREATE INDEX idx_uploads_user ON uploads(user_id);
CREATE INDEX idx_uploads_thread ON uploads(thread_id);
CREATE INDEX idx_uploads_updated ON uploads(updated_at);

-- What is durable of an upload: `tag` is what the store answered, `digests` the SHA-256 of each segment.
CREATE TABLE upload_parts (
    media_id UUID NOT NULL REFERENCES uploads(media_id) ON DELETE CASCADE,
    part INTEGER NOT NULL,
    generation BIGINT NOT NULL,
    first_byte BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    tag TEXT NOT NULL,
    digests BYTEA NOT NULL,
    PRIMARY KEY (media_id, part)
);

-- Blobs, and what is left of uploads, that the store is to delete. To delete one twice does no harm, so relays need not
-- agree on who does it. It is done once more after a while: a request to the store that was given up may have been carried
-- out all the same.
CREATE TABLE blob_deletions (
    storage_url TEXT PRIMARY KEY,
    due_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    is_deleted BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX idx_blob_deletions_due ON blob_deletions(due_at);

-- Whatever deletes a file or an upload, be it a cascade: its blob is to go, and its quota comes back, once.
CREATE FUNCTION release_media() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO blob_deletions (storage_url) VALUES (OLD.storage_url) ON CONFLICT DO NOTHING;
    UPDATE group_quotas
    SET total_bytes = total_bytes - OLD.size_bytes, media_count = media_count - 1, updated_at = clock_timestamp()
    WHERE group_id = OLD.group_id;
    RETURN NULL;
END $$;

CREATE TRIGGER release_media AFTER DELETE ON media FOR EACH ROW EXECUTE FUNCTION release_media();
-- A committed upload hands its blob and its reservation on to the file.
CREATE TRIGGER release_upload AFTER DELETE ON uploads FOR EACH ROW WHEN (NOT OLD.committed) EXECUTE FUNCTION release_media();

-- New columns come last: readers know the others by their places. Content that a row is missing for was erased.
CREATE OR REPLACE VIEW event_rows AS
SELECT e.group_id, e.seq, e.hash, e.kind, e.object_id, e.actor_id, e.key_epoch, to_us(e.created_at) AS created_us,
       e.content_hash, e.parent_id, e.field_hashes, e.statement, e.signature, t.encrypted_title,
       coalesce(t.encrypted_body, r.encrypted_body, a.encrypted_body) AS encrypted_body,
       e.kind IN (14, 15, 16, 18) AND coalesce(t.erased_at, r.erased_at, a.erased_at,
           CASE WHEN coalesce(t.id, r.id, a.id, m.id) IS NULL THEN e.created_at END) IS NOT NULL AS erased,
       m.encrypted_metadata, m.encryption_iv, m.size_bytes, m.root
FROM events e
LEFT JOIN threads t ON e.kind = 14 AND t.id = e.object_id
LEFT JOIN replies r ON e.kind = 15 AND r.id = e.object_id
LEFT JOIN annotations a ON e.kind = 16 AND a.id = e.object_id
LEFT JOIN media m ON e.kind = 18 AND m.id = e.object_id;

-- Reserve room for a file, or begin its upload again: then the same author, group, thread, size and vector are meant, and
-- `storage_url` is not used. A file that is committed has generation 0. What is free is told where there is too little.
--
-- The locks: the user's row, so that many begins at once are not one too many; the membership, so that it outlasts this
-- transaction; at last the quota, so that nobody who has it waits for anybody.
CREATE FUNCTION begin_upload_v1(
    p_media_id UUID, p_group_id UUID, p_thread_id UUID, p_user_id UUID, p_size BIGINT, p_iv TEXT, p_storage_url TEXT,
    max_uploads INTEGER
) RETURNS TABLE (error TEXT, durable_bytes BIGINT, generation BIGINT, free_bytes BIGINT, free_count INTEGER)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_upload uploads%ROWTYPE;
    found_object objects%ROWTYPE;
    found_quota group_quotas%ROWTYPE;
BEGIN
    PERFORM 1 FROM users u WHERE u.id = p_user_id FOR NO KEY UPDATE;
    PERFORM 1 FROM members m WHERE m.group_id = p_group_id AND m.user_id = p_user_id FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'not_found', NULL::BIGINT, NULL::BIGINT, NULL::BIGINT, NULL::INTEGER;
        RETURN;
    END IF;

    SELECT * INTO found_upload FROM uploads u WHERE u.media_id = p_media_id FOR UPDATE;
    IF FOUND THEN
        IF (found_upload.group_id, found_upload.thread_id, found_upload.user_id, found_upload.size_bytes, found_upload.encryption_iv)
           IS DISTINCT FROM (p_group_id, p_thread_id, p_user_id, p_size, p_iv::VARCHAR(32)) THEN
            RETURN QUERY SELECT 'id_conflict', NULL::BIGINT, NULL::BIGINT, NULL::BIGINT, NULL::INTEGER;
            RETURN;
        END IF;
        RETURN QUERY
        UPDATE uploads u SET generation = u.generation + 1, next_part = u.next_part + 2, updated_at = clock_timestamp()
        WHERE u.media_id = p_media_id
        RETURNING NULL::TEXT, u.durable_bytes, u.generation, NULL::BIGINT, NULL::INTEGER;
        RETURN;
    END IF;

    SELECT * INTO found_object FROM objects o WHERE o.object_id = p_media_id;
    IF FOUND THEN
        IF (found_object.group_id, found_object.author_id, found_object.kind) IS DISTINCT FROM (p_group_id, p_user_id, 18::SMALLINT) THEN
            RETURN QUERY SELECT 'id_conflict', NULL::BIGINT, NULL::BIGINT, NULL::BIGINT, NULL::INTEGER;
            RETURN;
        END IF;
        RETURN QUERY SELECT NULL::TEXT, p_size, 0::BIGINT, NULL::BIGINT, NULL::INTEGER;
        RETURN;
    END IF;

    PERFORM 1 FROM objects o WHERE o.object_id = p_thread_id AND o.group_id = p_group_id AND o.kind = 14 AND NOT o.erased;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'not_found', NULL::BIGINT, NULL::BIGINT, NULL::BIGINT, NULL::INTEGER;
        RETURN;
    END IF;
    IF (SELECT count(*) FROM uploads u WHERE u.user_id = p_user_id) >= max_uploads THEN
        RETURN QUERY SELECT 'limit_exceeded', NULL::BIGINT, NULL::BIGINT, NULL::BIGINT, NULL::INTEGER;
        RETURN;
    END IF;

    UPDATE group_quotas q
    SET total_bytes = q.total_bytes + p_size, media_count = q.media_count + 1, updated_at = clock_timestamp()
    WHERE q.group_id = p_group_id AND q.total_bytes + p_size <= q.max_bytes AND q.media_count < q.max_media_count;
    IF NOT FOUND THEN
        SELECT * INTO found_quota FROM group_quotas q WHERE q.group_id = p_group_id;
        RETURN QUERY SELECT 'quota_exceeded', NULL::BIGINT, NULL::BIGINT,
            greatest(found_quota.max_bytes - found_quota.total_bytes, 0),
            greatest(found_quota.max_media_count - found_quota.media_count, 0);
        RETURN;
    END IF;
    INSERT INTO uploads (media_id, group_id, user_id, thread_id, size_bytes, encryption_iv, storage_url)
    VALUES (p_media_id, p_group_id, p_user_id, p_thread_id, p_size, p_iv, p_storage_url);
    RETURN QUERY SELECT NULL::TEXT, 0::BIGINT, 1::BIGINT, NULL::BIGINT, NULL::INTEGER;
END $$;

-- Turn an upload whose blob is finished into a file of its thread: the last step of `media.commit`, under the lock of the
-- group's head. A file that was committed before has its first result again. Where the upload is gone meanwhile, the blob
-- that was finished for it in vain is to go too.
CREATE FUNCTION commit_upload_v1(
    relay TEXT, p_media_id UUID, p_group_id UUID, p_user_id UUID, p_storage_url TEXT, p_key_epoch INTEGER, p_metadata TEXT,
    p_root BYTEA, p_fields BYTEA, p_content BYTEA
) RETURNS TABLE (error TEXT, seq BIGINT, hash BYTEA, created_us BIGINT, content_hash BYTEA, duplicate BOOLEAN)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at CONSTANT TIMESTAMPTZ := clock_timestamp();
    head group_heads%ROWTYPE;
    found_object objects%ROWTYPE;
    upload uploads%ROWTYPE;
    refused TEXT;
    new_hash BYTEA;
BEGIN
    -- A statement of its own: what follows must see what the lock waited for.
    SELECT * INTO head FROM group_heads h WHERE h.group_id = p_group_id FOR UPDATE;
    SELECT * INTO found_object FROM objects o WHERE o.object_id = p_media_id;
    -- The one whose blob was finished: it may have been dropped since, and begun anew under the same id.
    SELECT * INTO upload FROM uploads u
    WHERE u.media_id = p_media_id AND u.user_id = p_user_id AND u.storage_url = p_storage_url FOR UPDATE;
    refused := CASE
        WHEN head.deleted_at IS NOT NULL
            OR NOT EXISTS (SELECT 1 FROM members m WHERE m.group_id = p_group_id AND m.user_id = p_user_id) THEN 'not_found'
        WHEN found_object.object_id IS NOT NULL THEN
            CASE WHEN (found_object.group_id, found_object.author_id, found_object.kind) = (p_group_id, p_user_id, 18)
                 THEN 'duplicate' ELSE 'id_conflict' END
        WHEN upload.media_id IS NULL OR upload.durable_bytes <> upload.size_bytes THEN 'not_found'
        WHEN head.rekey_required THEN 'rekey_required'
        WHEN head.key_epoch <> p_key_epoch THEN 'stale_key_epoch'
        WHEN NOT EXISTS (SELECT 1 FROM objects p WHERE p.object_id = upload.thread_id AND p.kind = 14 AND NOT p.erased)
            THEN 'not_found'
    END;
    IF upload.media_id IS NULL AND NOT EXISTS (SELECT 1 FROM media m WHERE m.id = p_media_id AND m.storage_url = p_storage_url) THEN
        INSERT INTO blob_deletions (storage_url) VALUES (p_storage_url) ON CONFLICT DO NOTHING;
    END IF;
    IF refused = 'duplicate' THEN
        RETURN QUERY
        SELECT NULL::TEXT, e.seq, e.hash, to_us(e.created_at), e.content_hash, TRUE
        FROM events e WHERE e.group_id = p_group_id AND e.seq = found_object.seq;
        RETURN;
    ELSIF refused IS NOT NULL THEN
        RETURN QUERY SELECT refused, NULL::BIGINT, NULL::BYTEA, NULL::BIGINT, NULL::BYTEA, FALSE;
        RETURN;
    END IF;

    UPDATE uploads u SET committed = TRUE WHERE u.media_id = p_media_id;
    DELETE FROM uploads u WHERE u.media_id = p_media_id;
    new_hash := event_hash(head.head_hash, p_group_id, head.last_seq + 1, 18::SMALLINT, p_media_id, p_user_id,
                           p_key_epoch, to_us(now_at), p_content);
    INSERT INTO objects (object_id, group_id, seq, author_id, kind)
    VALUES (p_media_id, p_group_id, head.last_seq + 1, p_user_id, 18);
    INSERT INTO media (id, thread_id, author_id, encrypted_metadata, storage_url, encryption_iv, size_bytes, uploaded_at,
                       expires_at, group_id, seq, key_epoch, root)
    VALUES (p_media_id, upload.thread_id, p_user_id, p_metadata, upload.storage_url, upload.encryption_iv, upload.size_bytes,
            now_at, now_at + INTERVAL '7 days', p_group_id, head.last_seq + 1, p_key_epoch, p_root);
    INSERT INTO events (group_id, seq, kind, object_id, actor_id, parent_id, key_epoch, created_at, field_hashes,
                        content_hash, hash)
    VALUES (p_group_id, head.last_seq + 1, 18, p_media_id, p_user_id, upload.thread_id, p_key_epoch, now_at, p_fields,
            p_content, new_hash);
    UPDATE group_heads h SET last_seq = head.last_seq + 1, head_hash = new_hash WHERE h.group_id = p_group_id;
    PERFORM notify_wake_v1(relay, ARRAY[p_group_id], ARRAY[head.last_seq + 1]);
    RETURN QUERY SELECT NULL::TEXT, head.last_seq + 1, new_hash, to_us(now_at), p_content, FALSE;
END $$;

-- Expire these files, or (null) so many of those whose time has come: the row goes, and with it quota and blob; the log
-- says so, a row of the result for each event. Files of a group that is just being deleted are left to that.
CREATE FUNCTION expire_media_v1(relay TEXT, p_media_ids UUID[], max_files INTEGER)
RETURNS TABLE (group_id UUID, kind SMALLINT, object_id UUID, seq BIGINT, hash BYTEA, created_us BIGINT, key_epoch INTEGER)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    chosen UUID[];
    file RECORD;
BEGIN
    chosen := coalesce(p_media_ids, ARRAY(
        SELECT m.id FROM media m WHERE m.expires_at <= clock_timestamp() ORDER BY m.expires_at LIMIT max_files));
    PERFORM 1 FROM group_heads h
    WHERE h.group_id IN (SELECT m.group_id FROM media m WHERE m.id = ANY (chosen)) ORDER BY h.group_id FOR UPDATE;
    FOR file IN DELETE FROM media m WHERE m.id = ANY (chosen) RETURNING m.id, m.group_id LOOP
        UPDATE objects o SET erased = TRUE, expired = TRUE WHERE o.object_id = file.id;
        RETURN QUERY
        SELECT file.group_id, 20::SMALLINT, file.id, e.*
        FROM append_relay_event_v1(relay, file.group_id, 20::SMALLINT, file.id, FALSE) e;
    END LOOP;
END $$;

-- migrate: rollback

DROP FUNCTION expire_media_v1;
DROP FUNCTION commit_upload_v1;
DROP FUNCTION begin_upload_v1;
DROP VIEW event_rows;
CREATE VIEW event_rows AS
SELECT e.group_id, e.seq, e.hash, e.kind, e.object_id, e.actor_id, e.key_epoch, to_us(e.created_at) AS created_us,
       e.content_hash, e.parent_id, e.field_hashes, e.statement, e.signature, t.encrypted_title,
       coalesce(t.encrypted_body, r.encrypted_body, a.encrypted_body) AS encrypted_body,
       e.kind IN (14, 15, 16) AND coalesce(t.erased_at, r.erased_at, a.erased_at,
           CASE WHEN coalesce(t.id, r.id, a.id) IS NULL THEN e.created_at END) IS NOT NULL AS erased
FROM events e
LEFT JOIN threads t ON e.kind = 14 AND t.id = e.object_id
LEFT JOIN replies r ON e.kind = 15 AND r.id = e.object_id
LEFT JOIN annotations a ON e.kind = 16 AND a.id = e.object_id;
DROP TRIGGER release_upload ON uploads;
DROP TRIGGER release_media ON media;
DROP FUNCTION release_media;
DROP TABLE blob_deletions;
DROP TABLE upload_parts;
DROP TABLE uploads;
ALTER TABLE objects DROP COLUMN expired;
ALTER TABLE media DROP COLUMN root;
