-- One row a transaction, as plainly as PostgreSQL can be asked for it; {body} stands for 400 bytes in base64.
\set place random(10, 59)
\set seq :seq + 1
INSERT INTO yardstick (id, thread_id, author_id, encrypted_body, group_id, seq, key_epoch)
VALUES (
    uuidv7(),
    ('00000000-0000-7000-8000-0000000000' || :place)::UUID,
    '00000000-0000-7000-8000-000000000001',
    '{body}',
    ('00000000-0000-7000-9000-0000000000' || :place)::UUID,
    :seq,
    1
);
