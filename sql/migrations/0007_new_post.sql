-- What a relay hands over of a post, as one value
-- depends: 0006_append_one
-- oldest relay: 0.1.0

-- migrate: apply

-- A batch is an array of these: a driver takes half the time for it that it takes for an array of each column.
CREATE TYPE new_post AS (
    group_id UUID, kind SMALLINT, object_id UUID, parent_id UUID, author_id UUID, key_epoch INTEGER, title TEXT, body TEXT,
    fields BYTEA, content BYTEA
);

-- migrate: rollback

DROP TYPE new_post;
