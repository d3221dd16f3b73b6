-- How far named cursors (bots' places, read marks) are behind their group's head. What a live subscriber lacks is in no
-- table: the relay's metric orbital_outbox_bytes tells of that.
SELECT u.username, u.is_bot, c.group_id, c.name, c.seq, h.last_seq, h.last_seq - c.seq AS behind, c.updated_at
FROM cursors c
JOIN users u ON u.id = c.user_id
JOIN group_heads h ON h.group_id = c.group_id
ORDER BY behind DESC, c.updated_at
LIMIT 100;
