-- Functions that append to the log, and the deletions that end in it
-- depends: 0002_log
-- oldest relay: 0.1.0

-- migrate: apply

-- Microseconds since 1970 UTC, as on the wire and in the chain.
CREATE FUNCTION to_us(t TIMESTAMPTZ) RETURNS BIGINT LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (extract(epoch FROM t) * 1000000)::BIGINT;

CREATE FUNCTION from_us(us BIGINT) RETURNS TIMESTAMPTZ LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN TIMESTAMPTZ '1970-01-01 00:00:00+00' + us * INTERVAL '1 microsecond';

-- The log with the ciphertexts that the founding tables keep; the columns as orbital_relay/store/events.py reads them.
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

-- Hash of an event, chained to the one before; the preimage is in protocol/SPEC.md.
CREATE FUNCTION event_hash(
    previous BYTEA, group_id UUID, seq BIGINT, kind SMALLINT, object_id UUID, actor_id UUID, key_epoch INTEGER,
    created_us BIGINT, content_hash BYTEA
) RETURNS BYTEA LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256('\x6f72626974616c2e76312e6576656e7400'::BYTEA || previous || uuid_send(group_id) || int8send(seq)
    || substring(int2send(kind) FROM 2) || uuid_send(object_id) || uuid_send(actor_id) || int4send(key_epoch)
    || int8send(created_us) || content_hash);

-- Tell every relay how far these groups have come. Payload: 'w1', the relay that speaks, and group:seq pairs.
CREATE FUNCTION notify_wake_v1(relay TEXT, group_ids UUID[], seqs BIGINT[]) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    per_payload CONSTANT INTEGER := 140;  -- 140 x (32 + 1 + 16 + 1) bytes stay below the 8,000 of NOTIFY
    payload TEXT;
BEGIN
    FOR payload IN
        SELECT string_agg(encode(uuid_send(g.group_id), 'hex') || ':' || g.seq, ',')
        FROM unnest(group_ids, seqs) WITH ORDINALITY AS g(group_id, seq, ord)
        GROUP BY (g.ord - 1) / per_payload
    LOOP
        PERFORM pg_notify('orbital', 'w1 ' || relay || ' ' || payload);
    END LOOP;
END $$;

-- Append a batch of posts: one transaction, one round trip, a result for each item in the order of the arguments.
--
-- Items of one group stand together, and no object id stands twice or beside a post that has it as its parent (the
-- writer sees to it). An item that may not be appended gets an error and uses no number. An object id that another
-- transaction inserted after our check raises unique_violation: the caller splits the batch and tries again.
--
-- The settings keep the plans on the indexes: they are made while the tables are small and live as long as the
-- connection. Without the first, a small batch would be planned anew each time, which costs as much as to append it.
CREATE FUNCTION append_posts_v1(
    relay TEXT, group_ids UUID[], kinds SMALLINT[], object_ids UUID[], parent_ids UUID[], author_ids UUID[],
    key_epochs INTEGER[], titles TEXT[], bodies TEXT[], fields BYTEA[], contents BYTEA[]
) RETURNS TABLE (error TEXT, seq BIGINT, hash BYTEA, created_us BIGINT, content_hash BYTEA, duplicate BOOLEAN)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    n CONSTANT INTEGER := cardinality(group_ids);
    errors TEXT[];
    seqs BIGINT[] := array_fill(NULL::BIGINT, ARRAY[n]);
    hashes BYTEA[] := array_fill(NULL::BYTEA, ARRAY[n]);
    moved UUID[] := '{}';
    moved_seqs BIGINT[] := '{}';
    moved_hashes BYTEA[] := '{}';
    current_group UUID;
    last_seq BIGINT;
    head BYTEA;
    now_at CONSTANT TIMESTAMPTZ := clock_timestamp();
    now_us CONSTANT BIGINT := to_us(now_at);
BEGIN
    -- 1. Lock the heads, in the order of their ids. A statement of its own: what follows must see what the locks waited for.
    PERFORM 1 FROM group_heads h WHERE h.group_id = ANY (group_ids) ORDER BY h.group_id FOR UPDATE;

    -- 2. Who may not be appended, and why.
    SELECT array_agg(
        CASE
            WHEN m.user_id IS NULL OR h.deleted_at IS NOT NULL THEN 'not_found'
            WHEN o.object_id IS NOT NULL THEN
                CASE WHEN o.group_id = i.group_id AND o.author_id = i.author_id THEN 'duplicate' ELSE 'id_conflict' END
            WHEN h.rekey_required THEN 'rekey_required'
            WHEN h.key_epoch <> i.key_epoch THEN 'stale_key_epoch'
            WHEN i.kind = 14 THEN NULL
            WHEN p.object_id IS NULL OR p.group_id <> i.group_id OR p.erased THEN 'not_found'
            WHEN i.kind = 15 AND p.kind <> 14 THEN 'not_found'
            WHEN i.kind = 16 AND p.kind NOT IN (14, 15, 16, 18) THEN 'not_found'
        END ORDER BY i.ord)
    INTO errors
    FROM unnest(group_ids, kinds, object_ids, parent_ids, author_ids, key_epochs) WITH ORDINALITY
        AS i(group_id, kind, object_id, parent_id, author_id, key_epoch, ord)
    LEFT JOIN group_heads h ON h.group_id = i.group_id
    LEFT JOIN members m ON m.group_id = i.group_id AND m.user_id = i.author_id
    LEFT JOIN objects o ON o.object_id = i.object_id
    LEFT JOIN objects p ON p.object_id = i.parent_id;

    -- 3. Number and chain the rest.
    FOR i IN 1..n LOOP
        CONTINUE WHEN errors[i] IS NOT NULL;
        IF current_group IS DISTINCT FROM group_ids[i] THEN
            IF current_group IS NOT NULL THEN
                moved := moved || current_group;
                moved_seqs := moved_seqs || last_seq;
                moved_hashes := moved_hashes || head;
            END IF;
            current_group := group_ids[i];
            SELECT h.last_seq, h.head_hash INTO last_seq, head FROM group_heads h WHERE h.group_id = current_group;
        END IF;
        last_seq := last_seq + 1;
        head := event_hash(head, current_group, last_seq, kinds[i], object_ids[i], author_ids[i], key_epochs[i],
                           now_us, contents[i]);
        seqs[i] := last_seq;
        hashes[i] := head;
    END LOOP;

    -- 4. Write them down, move the heads, tell the others.
    IF current_group IS NOT NULL THEN
        moved := moved || current_group;
        moved_seqs := moved_seqs || last_seq;
        moved_hashes := moved_hashes || head;

        INSERT INTO objects (object_id, group_id, seq, author_id, kind)
        SELECT i.object_id, i.group_id, i.seq, i.author_id, i.kind
        FROM unnest(object_ids, group_ids, seqs, author_ids, kinds) AS i(object_id, group_id, seq, author_id, kind)
        WHERE i.seq IS NOT NULL ORDER BY i.object_id;

        IF 14 = ANY (kinds) THEN
            INSERT INTO threads (id, group_id, author_id, encrypted_title, encrypted_body, created_at, seq, key_epoch)
            SELECT i.id, i.group_id, i.author_id, i.title, i.body, now_at, i.seq, i.key_epoch
            FROM unnest(object_ids, group_ids, author_ids, titles, bodies, seqs, key_epochs, kinds)
                AS i(id, group_id, author_id, title, body, seq, key_epoch, kind)
            WHERE i.seq IS NOT NULL AND i.kind = 14;
        END IF;
        IF 15 = ANY (kinds) THEN
            INSERT INTO replies (id, thread_id, author_id, encrypted_body, created_at, group_id, seq, key_epoch)
            SELECT i.id, i.parent_id, i.author_id, i.body, now_at, i.group_id, i.seq, i.key_epoch
            FROM unnest(object_ids, parent_ids, author_ids, bodies, group_ids, seqs, key_epochs, kinds)
                AS i(id, parent_id, author_id, body, group_id, seq, key_epoch, kind)
            WHERE i.seq IS NOT NULL AND i.kind = 15;
        END IF;
        IF 16 = ANY (kinds) THEN
            INSERT INTO annotations (id, group_id, target_id, author_id, encrypted_body, created_at, seq, key_epoch)
            SELECT i.id, i.group_id, i.parent_id, i.author_id, i.body, now_at, i.seq, i.key_epoch
            FROM unnest(object_ids, group_ids, parent_ids, author_ids, bodies, seqs, key_epochs, kinds)
                AS i(id, group_id, parent_id, author_id, body, seq, key_epoch, kind)
            WHERE i.seq IS NOT NULL AND i.kind = 16;
        END IF;

        INSERT INTO events (group_id, seq, kind, object_id, actor_id, parent_id, key_epoch, created_at, field_hashes,
                            content_hash, hash)
        SELECT i.group_id, i.seq, i.kind, i.object_id, i.author_id, i.parent_id, i.key_epoch, now_at, i.fields, i.content,
               i.hash
        FROM unnest(group_ids, seqs, kinds, object_ids, author_ids, parent_ids, key_epochs, fields, contents, hashes)
            AS i(group_id, seq, kind, object_id, author_id, parent_id, key_epoch, fields, content, hash)
        WHERE i.seq IS NOT NULL;

        UPDATE group_heads h SET last_seq = m.seq, head_hash = m.hash
        FROM unnest(moved, moved_seqs, moved_hashes) AS m(group_id, seq, hash) WHERE h.group_id = m.group_id;

        PERFORM notify_wake_v1(relay, moved, moved_seqs);
    END IF;

    -- 5. Answer; a duplicate gets the first result.
    IF 'duplicate' = ANY (errors) THEN
        RETURN QUERY
        SELECT nullif(i.error, 'duplicate'), coalesce(i.seq, e.seq), coalesce(i.hash, e.hash),
               coalesce(to_us(e.created_at), now_us), coalesce(e.content_hash, i.content), i.error IS NOT DISTINCT FROM 'duplicate'
        FROM unnest(errors, seqs, hashes, object_ids, contents) WITH ORDINALITY
            AS i(error, seq, hash, object_id, content, ord)
        LEFT JOIN objects o ON i.error = 'duplicate' AND o.object_id = i.object_id
        LEFT JOIN events e ON e.group_id = o.group_id AND e.seq = o.seq
        ORDER BY i.ord;
    ELSE
        RETURN QUERY
        SELECT i.error, i.seq, i.hash, now_us, i.content, FALSE
        FROM unnest(errors, seqs, hashes, contents) AS i(error, seq, hash, content);
    END IF;
END $$;

-- Append one control event to a group whose head the caller has locked in this transaction (lock_group). The object id
-- is the statement's id; an event of the relay's own has neither statement nor signature, and is in no need of one.
CREATE FUNCTION append_control_v1(
    relay TEXT, p_group_id UUID, p_kind SMALLINT, p_object_id UUID, p_actor_id UUID, p_statement BYTEA, p_signature BYTEA,
    p_field_hashes BYTEA, p_content_hash BYTEA, changes_roster BOOLEAN
) RETURNS TABLE (seq BIGINT, hash BYTEA, created_us BIGINT, key_epoch INTEGER) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    head group_heads%ROWTYPE;
    now_at CONSTANT TIMESTAMPTZ := clock_timestamp();
    new_hash BYTEA;
BEGIN
    SELECT * INTO STRICT head FROM group_heads h WHERE h.group_id = p_group_id FOR UPDATE;
    new_hash := event_hash(head.head_hash, p_group_id, head.last_seq + 1, p_kind, p_object_id, p_actor_id,
                           head.key_epoch, to_us(now_at), p_content_hash);
    IF p_statement IS NOT NULL THEN
        INSERT INTO objects (object_id, group_id, seq, author_id, kind)
        VALUES (p_object_id, p_group_id, head.last_seq + 1, p_actor_id, p_kind);
    END IF;
    INSERT INTO events (group_id, seq, kind, object_id, actor_id, key_epoch, created_at, field_hashes, content_hash, hash,
                        statement, signature)
    VALUES (p_group_id, head.last_seq + 1, p_kind, p_object_id, p_actor_id, head.key_epoch, now_at, p_field_hashes,
            p_content_hash, new_hash, p_statement, p_signature);
    UPDATE group_heads h
    SET last_seq = head.last_seq + 1, head_hash = new_hash,
        roster_seq = CASE WHEN changes_roster THEN head.last_seq + 1 ELSE head.roster_seq END
    WHERE h.group_id = p_group_id;
    PERFORM notify_wake_v1(relay, ARRAY[p_group_id], ARRAY[head.last_seq + 1]);
    RETURN QUERY SELECT head.last_seq + 1, new_hash, to_us(now_at), head.key_epoch;
END $$;

-- Append an event of the relay's own: no statement, a zero actor, the user or media concerned as its object.
CREATE FUNCTION append_relay_event_v1(relay TEXT, p_group_id UUID, p_kind SMALLINT, p_object_id UUID, changes_roster BOOLEAN)
RETURNS TABLE (seq BIGINT, hash BYTEA, created_us BIGINT, key_epoch INTEGER) LANGUAGE sql AS $$
    SELECT * FROM append_control_v1(
        relay, p_group_id, p_kind, p_object_id, '00000000-0000-0000-0000-000000000000', NULL, NULL, ''::BYTEA,
        sha256('\x0000000000000000000000000000000000'::BYTEA), changes_roster)
$$;

-- Delete a group whose log has just ended with group.deleted: its head becomes a tombstone, that last event stays, the
-- rest goes by the cascades of the founding schema.
CREATE FUNCTION bury_group_v1(p_group_id UUID) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    UPDATE group_heads SET deleted_at = clock_timestamp() WHERE group_id = p_group_id;
    DELETE FROM objects o USING events e, group_heads h
    WHERE h.group_id = p_group_id AND e.group_id = p_group_id AND e.seq < h.last_seq AND o.object_id = e.object_id
      AND o.group_id = p_group_id;
    DELETE FROM events e USING group_heads h
    WHERE h.group_id = p_group_id AND e.group_id = p_group_id AND e.seq < h.last_seq;
    DELETE FROM groups WHERE id = p_group_id;
END $$;

-- Delete a user: their groups go on without them (member.left, a rekey is due), the groups they own end. A user who owns
-- groups is left alone unless `with_groups`; then the one row returned has the kind 0. Otherwise a row for each event.
--
-- The heads come first and the user's row after them, the order of everyone who posts. A join that slipped in between
-- is seen once the user's row is ours: then serialization_failure is raised, and the caller tries again.
CREATE FUNCTION delete_user_v1(relay TEXT, p_user_id UUID, with_groups BOOLEAN)
RETURNS TABLE (group_id UUID, kind SMALLINT, object_id UUID, seq BIGINT, hash BYTEA, created_us BIGINT, key_epoch INTEGER)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    mine UUID[];
    owned UUID[];
    g UUID;
BEGIN
    SELECT coalesce(array_agg(m.group_id ORDER BY m.group_id), '{}') INTO mine FROM members m WHERE m.user_id = p_user_id;
    PERFORM 1 FROM group_heads h WHERE h.group_id = ANY (mine) ORDER BY h.group_id FOR UPDATE;
    PERFORM 1 FROM users u WHERE u.id = p_user_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT 1 FROM members m WHERE m.user_id = p_user_id AND m.group_id <> ALL (mine)) THEN
        RAISE serialization_failure USING MESSAGE = 'the user joined a group meanwhile';
    END IF;
    SELECT coalesce(array_agg(gr.id ORDER BY gr.id), '{}') INTO owned FROM groups gr WHERE gr.created_by = p_user_id;
    IF cardinality(owned) > 0 AND NOT with_groups THEN
        RETURN QUERY SELECT owned[1], 0::SMALLINT, p_user_id, 0::BIGINT, ''::BYTEA, 0::BIGINT, 0;
        RETURN;
    END IF;
    FOREACH g IN ARRAY mine LOOP
        -- A member of a group that was buried meanwhile is a member no more.
        CONTINUE WHEN NOT EXISTS (SELECT 1 FROM members m WHERE m.group_id = g AND m.user_id = p_user_id);
        IF g = ANY (owned) THEN
            RETURN QUERY SELECT g, 5::SMALLINT, p_user_id, e.* FROM append_relay_event_v1(relay, g, 5::SMALLINT, p_user_id, FALSE) e;
            PERFORM bury_group_v1(g);
        ELSE
            RETURN QUERY SELECT g, 7::SMALLINT, p_user_id, e.* FROM append_relay_event_v1(relay, g, 7::SMALLINT, p_user_id, TRUE) e;
            UPDATE group_heads h SET rekey_required = TRUE WHERE h.group_id = g;
        END IF;
    END LOOP;
    DELETE FROM users u WHERE u.id = p_user_id;
END $$;

-- migrate: rollback

DROP FUNCTION delete_user_v1;
DROP FUNCTION bury_group_v1;
DROP FUNCTION append_relay_event_v1;
DROP FUNCTION append_control_v1;
DROP FUNCTION append_posts_v1;
DROP FUNCTION notify_wake_v1;
DROP FUNCTION event_hash;
DROP VIEW event_rows;
DROP FUNCTION from_us;
DROP FUNCTION to_us;
