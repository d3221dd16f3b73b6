-- Who was ever in a group
-- depends: 0003_append
-- oldest relay: 0.1.0

-- migrate: apply

-- Everyone who was ever a member, hence every author and actor of the group's log. Whoever reads the log may ask for
-- their keys, also once they have left or their account is gone: no foreign key to users. The log itself has no index
-- by actor, which each post would have to pay for.
CREATE TABLE group_people (
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    user_id UUID NOT NULL,
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX idx_group_people_user ON group_people(user_id);

INSERT INTO group_people (group_id, user_id) SELECT group_id, user_id FROM members;

CREATE FUNCTION remember_member() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO group_people (group_id, user_id) VALUES (NEW.group_id, NEW.user_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER remember_member AFTER INSERT ON members FOR EACH ROW EXECUTE FUNCTION remember_member();

-- migrate: rollback

DROP TRIGGER remember_member ON members;
DROP FUNCTION remember_member;
DROP TABLE group_people;
