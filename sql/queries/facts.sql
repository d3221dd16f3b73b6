-- What all relays on this database must agree on.

-- name: agree_on_fact(name, value)
WITH mine AS (INSERT INTO relay_facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING value)
SELECT value FROM mine UNION ALL SELECT value FROM relay_facts WHERE name = $1 LIMIT 1;

-- name: replace_fact(name, value)
INSERT INTO relay_facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
