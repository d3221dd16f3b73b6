-- Wrong passwords. An attempt on an account counts from its beginning, so that a thousand at once are a thousand.

-- name: begin_login_attempt(account, address, now_us, free, steps_us)
WITH blocked AS (
    SELECT blocked_until FROM login_attempts WHERE subject = $2 AND blocked_until > from_us($3)
), counted AS (
    INSERT INTO login_attempts AS a (subject, failures, blocked_until, updated_at)
    SELECT $1, 1, from_us($3 + CASE WHEN $4 > 1 THEN 0 ELSE ($5::BIGINT[])[1] END), from_us($3)
    WHERE NOT EXISTS (SELECT 1 FROM blocked)
    ON CONFLICT (subject) DO UPDATE
    SET failures = least(a.failures + 1, 1000000),
        blocked_until = from_us($3 + CASE
            WHEN a.failures + 1 < $4 THEN 0
            ELSE ($5::BIGINT[])[least(a.failures + 2 - $4, cardinality($5::BIGINT[]))]
        END),
        updated_at = excluded.updated_at
    WHERE a.blocked_until <= excluded.updated_at
    RETURNING 1
)
SELECT EXISTS (SELECT 1 FROM counted),
       to_us(greatest((SELECT blocked_until FROM blocked),
                      (SELECT blocked_until FROM login_attempts WHERE subject = $1)));

-- name: count_login_failure(subject, now_us, free, steps_us)
INSERT INTO login_attempts AS a (subject, failures, blocked_until, updated_at)
VALUES ($1, 1, from_us($2 + CASE WHEN $3 > 1 THEN 0 ELSE ($4::BIGINT[])[1] END), from_us($2))
ON CONFLICT (subject) DO UPDATE
SET failures = least(a.failures + 1, 1000000),
    blocked_until = greatest(a.blocked_until, from_us($2 + CASE
        WHEN a.failures + 1 < $3 THEN 0
        ELSE ($4::BIGINT[])[least(a.failures + 2 - $3, cardinality($4::BIGINT[]))]
    END)),
    updated_at = excluded.updated_at;

-- name: forget_login_failures(subject)
DELETE FROM login_attempts WHERE subject = $1;

-- name: take_back_login_attempt(subject, now_us)
UPDATE login_attempts SET failures = failures - 1, blocked_until = least(blocked_until, from_us($2)) WHERE subject = $1 AND failures > 0;
