-- Posts: one batch, one transaction, one round trip.

-- name: append_posts(relay, posts)
-- The order is that of the posts: an aggregate takes its rows as they come.
SELECT appended.*
FROM (
    SELECT array_agg(p.group_id) AS group_ids, array_agg(p.kind) AS kinds, array_agg(p.object_id) AS object_ids,
           array_agg(p.parent_id) AS parent_ids, array_agg(p.author_id) AS author_ids, array_agg(p.key_epoch) AS key_epochs,
           array_agg(p.title) AS titles, array_agg(p.body) AS bodies, array_agg(p.fields) AS fields,
           array_agg(p.content) AS contents
    FROM unnest($2::new_post[]) AS p
) AS batch,
append_posts_v1($1, group_ids, kinds, object_ids, parent_ids, author_ids, key_epochs, titles, bodies, fields, contents)
    AS appended;

-- name: append_post(relay, group_id, kind, object_id, parent_id, author_id, key_epoch, title, body, fields, content)
SELECT * FROM append_post_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);
