-- What relays have to remove of media: a relay's sweep leaves nothing overdue for long. Blobs that wait mean that the
-- store does not delete them; the relays try each again after a minute.
SELECT (SELECT count(*) FROM media WHERE expires_at <= now()) AS overdue_files,
       (SELECT now() - min(expires_at) FROM media WHERE expires_at <= now()) AS most_overdue,
       (SELECT count(*) FROM uploads) AS uploads,
       (SELECT now() - min(updated_at) FROM uploads) AS longest_idle_upload,
       (SELECT count(*) FROM blob_deletions WHERE NOT is_deleted) AS blobs_to_delete,
       (SELECT min(due_at) FROM blob_deletions WHERE NOT is_deleted) AS oldest_deletion;
