-- Posts: one batch, one transaction, one round trip.

-- name: append_posts(relay, group_ids, kinds, object_ids, parent_ids, author_ids, key_epochs, titles, bodies, fields, contents)
SELECT * FROM append_posts_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: append_post(relay, group_id, kind, object_id, parent_id, author_id, key_epoch, title, body, fields, content)
SELECT * FROM append_post_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);
