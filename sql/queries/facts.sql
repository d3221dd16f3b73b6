-- What all relays on this database must agree on.

-- name: agree_on_fact(name, value)
WITH mine AS (INSERT INTO relay_facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING value)
SELECT value FROM mine UNION ALL SELECT value FROM relay_facts WHERE name = $1 LIMIT 1;

-- name: replace_fact(name, value)
INSERT INTO relay_facts (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: forget_fact(name)
DELETE FROM relay_facts WHERE name = $1;

-- Relays by what their connections call themselves: "orbital-relay pool ab12…".
-- name: count_relays()
SELECT count(DISTINCT split_part(application_name, ' ', 3)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name ~ '^orbital-relay (pool|lane|listener) ';
