-- The eight tables of the founding schema
-- depends:
-- oldest relay: 0.1.0

-- migrate: apply

-- What differs from the founding document, and why, is listed in tests/integration/test_seed_schema.py:
-- author_id may be null, ids come from gen_random_uuid(), and two unique constraints bear the name of the index
-- that would repeat them.

CREATE TABLE users (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    username VARCHAR(50) NOT NULL,
    password_hash VARCHAR(255) NOT NULL,
    public_key JSONB NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT idx_users_username UNIQUE (username),
    CONSTRAINT username_length CHECK (char_length(username) >= 3 AND char_length(username) <= 50)
);

CREATE TABLE groups (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    encrypted_name TEXT NOT NULL,
    created_by UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    invite_code VARCHAR(8) NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT idx_groups_invite_code UNIQUE (invite_code),
    CONSTRAINT invite_code_format CHECK (invite_code ~ '^[A-Za-z0-9]{8}$')
);
CREATE INDEX idx_groups_created_by ON groups(created_by);

CREATE TABLE members (
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    encrypted_group_key TEXT NOT NULL,
    joined_at TIMESTAMPTZ DEFAULT NOW(),
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX idx_members_user ON members(user_id);
CREATE INDEX idx_members_group ON members(group_id);

CREATE TABLE threads (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    group_id UUID NOT NULL REFERENCES groups(id) ON DELETE CASCADE,
    author_id UUID REFERENCES users(id) ON DELETE SET NULL,
    encrypted_title TEXT NOT NULL,
    encrypted_body TEXT NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW()
);
CREATE INDEX idx_threads_group ON threads(group_id);
CREATE INDEX idx_threads_created ON threads(created_at DESC);
CREATE INDEX idx_threads_author ON threads(author_id);

CREATE TABLE replies (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    thread_id UUID NOT NULL REFERENCES threads(id) ON DELETE CASCADE,
    author_id UUID REFERENCES users(id) ON DELETE SET NULL,
    encrypted_body TEXT NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW()
);
CREATE INDEX idx_replies_thread ON replies(thread_id);
CREATE INDEX idx_replies_created ON replies(created_at DESC);
CREATE INDEX idx_replies_author ON replies(author_id);

CREATE TABLE media (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    thread_id UUID NOT NULL REFERENCES threads(id) ON DELETE CASCADE,
    author_id UUID REFERENCES users(id) ON DELETE SET NULL,
    encrypted_metadata TEXT NOT NULL,
    storage_url TEXT NOT NULL,
    encryption_iv VARCHAR(32) NOT NULL,
    size_bytes BIGINT NOT NULL,
    uploaded_at TIMESTAMPTZ DEFAULT NOW(),
    expires_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX idx_media_thread ON media(thread_id);
CREATE INDEX idx_media_author ON media(author_id);
CREATE INDEX idx_media_expires ON media(expires_at);

CREATE TABLE media_downloads (
    media_id UUID NOT NULL REFERENCES media(id) ON DELETE CASCADE,
    user_id UUID NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    downloaded_at TIMESTAMPTZ DEFAULT NOW(),
    PRIMARY KEY (media_id, user_id)
);
CREATE INDEX idx_media_downloads_user ON media_downloads(user_id);
CREATE INDEX idx_media_downloads_media ON media_downloads(media_id);

CREATE TABLE group_quotas (
    group_id UUID PRIMARY KEY REFERENCES groups(id) ON DELETE CASCADE,
    total_bytes BIGINT DEFAULT 0,
    media_count INTEGER DEFAULT 0,
    max_bytes BIGINT DEFAULT 10737418240,
    max_media_count INTEGER DEFAULT 100,
    updated_at TIMESTAMPTZ DEFAULT NOW()
);
CREATE INDEX idx_group_quotas_group ON group_quotas(group_id);

-- migrate: rollback

DROP TABLE group_quotas;
DROP TABLE media_downloads;
DROP TABLE media;
DROP TABLE replies;
DROP TABLE threads;
DROP TABLE members;
DROP TABLE groups;
DROP TABLE users;
