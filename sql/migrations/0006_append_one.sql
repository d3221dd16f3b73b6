-- A function that appends a single post
-- depends: 0005_media
-- oldest relay: 0.1.0

-- migrate: apply

-- What append_posts_v1 does with a batch of one, for a relay with little to do: without arrays it takes less time.
-- Whatever changes here changes there too; a test holds the one to the other.
CREATE FUNCTION append_post_v1(
    relay TEXT, p_group_id UUID, p_kind SMALLINT, p_object_id UUID, p_parent_id UUID, p_author_id UUID,
    p_key_epoch INTEGER, p_title TEXT, p_body TEXT, p_fields BYTEA, p_content BYTEA,
    OUT error TEXT, OUT seq BIGINT, OUT hash BYTEA, OUT created_us BIGINT, OUT content_hash BYTEA, OUT duplicate BOOLEAN
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    head group_heads%ROWTYPE;
    known objects%ROWTYPE;
    parent objects%ROWTYPE;
    is_member BOOLEAN;
    now_at CONSTANT TIMESTAMPTZ := clock_timestamp();
BEGIN
    created_us := to_us(now_at);
    content_hash := p_content;
    duplicate := FALSE;

    -- 1. Lock the head. A statement of its own: what follows must see what the lock waited for.
    SELECT * INTO head FROM group_heads h WHERE h.group_id = p_group_id FOR UPDATE;

    -- 2. Whether it may be appended.
    SELECT TRUE INTO is_member FROM members m WHERE m.group_id = p_group_id AND m.user_id = p_author_id;
    SELECT * INTO known FROM objects o WHERE o.object_id = p_object_id;
    IF p_kind <> 14 THEN
        SELECT * INTO parent FROM objects o WHERE o.object_id = p_parent_id;
    END IF;
    error := CASE
        WHEN is_member IS NULL OR head.group_id IS NULL OR head.deleted_at IS NOT NULL THEN 'not_found'
        WHEN known.object_id IS NOT NULL THEN
            CASE WHEN known.group_id = p_group_id AND known.author_id = p_author_id THEN 'duplicate' ELSE 'id_conflict' END
        WHEN head.rekey_required THEN 'rekey_required'
        WHEN head.key_epoch <> p_key_epoch THEN 'stale_key_epoch'
        WHEN p_kind = 14 THEN NULL
        WHEN parent.object_id IS NULL OR parent.group_id <> p_group_id OR parent.erased THEN 'not_found'
        WHEN p_kind = 15 AND parent.kind <> 14 THEN 'not_found'
        WHEN p_kind = 16 AND parent.kind NOT IN (14, 15, 16, 18) THEN 'not_found'
    END;
    IF error = 'duplicate' THEN  -- it gets the first result
        error := NULL;
        duplicate := TRUE;
        SELECT e.seq, e.hash, to_us(e.created_at), e.content_hash INTO seq, hash, created_us, content_hash
        FROM events e WHERE e.group_id = known.group_id AND e.seq = known.seq;
        RETURN;
    ELSIF error IS NOT NULL THEN
        RETURN;
    END IF;

    -- 3. Number it, chain it, write it down, move the head, tell the others.
    seq := head.last_seq + 1;
    hash := event_hash(head.head_hash, p_group_id, seq, p_kind, p_object_id, p_author_id, p_key_epoch, created_us, p_content);
    INSERT INTO objects (object_id, group_id, seq, author_id, kind)
    VALUES (p_object_id, p_group_id, append_post_v1.seq, p_author_id, p_kind);
    CASE p_kind
        WHEN 14 THEN
            INSERT INTO threads (id, group_id, author_id, encrypted_title, encrypted_body, created_at, seq, key_epoch)
            VALUES (p_object_id, p_group_id, p_author_id, p_title, p_body, now_at, append_post_v1.seq, p_key_epoch);
        WHEN 15 THEN
            INSERT INTO replies (id, thread_id, author_id, encrypted_body, created_at, group_id, seq, key_epoch)
            VALUES (p_object_id, p_parent_id, p_author_id, p_body, now_at, p_group_id, append_post_v1.seq, p_key_epoch);
        WHEN 16 THEN
            INSERT INTO annotations (id, group_id, target_id, author_id, encrypted_body, created_at, seq, key_epoch)
            VALUES (p_object_id, p_group_id, p_parent_id, p_author_id, p_body, now_at, append_post_v1.seq, p_key_epoch);
    END CASE;
    INSERT INTO events (group_id, seq, kind, object_id, actor_id, parent_id, key_epoch, created_at, field_hashes,
                        content_hash, hash)
    VALUES (p_group_id, append_post_v1.seq, p_kind, p_object_id, p_author_id, p_parent_id, p_key_epoch, now_at, p_fields,
            p_content, append_post_v1.hash);
    UPDATE group_heads h SET last_seq = append_post_v1.seq, head_hash = append_post_v1.hash WHERE h.group_id = p_group_id;
    PERFORM pg_notify('orbital', 'w1 ' || relay || ' ' || replace(p_group_id::TEXT, '-', '') || ':' || seq);
END $$;

-- migrate: rollback

DROP FUNCTION append_post_v1;
