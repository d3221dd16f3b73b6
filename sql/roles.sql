-- Two roles for a database of your own: orbital_owner, who owns the schema and migrates it, and orbital_user, as whom
-- relays connect: it reads and writes rows and runs functions, and can change nothing of the schema.
--
-- Run it once as a superuser, in the database that Orbital is to use, before the first `orbital-relay migrate up`:
--
--     createdb orbital
--     psql -d orbital -v ON_ERROR_STOP=1 -f sql/roles.sql
--     psql -d orbital -c '\password orbital_owner' -c '\password orbital_user'
--
-- Running it again is no harm. In a database whose tables somebody else owns, that owner hands them over first
-- (REASSIGN OWNED BY old_owner TO orbital_owner).

DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'orbital_owner') THEN
        CREATE ROLE orbital_owner LOGIN;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'orbital_user') THEN
        CREATE ROLE orbital_user LOGIN;
    END IF;
    -- Nobody else has business here; the owner may create, the relays may connect.
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT, CREATE ON DATABASE %I TO orbital_owner', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO orbital_user', current_database());
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO orbital_owner;
GRANT USAGE ON SCHEMA public TO orbital_user;

-- What the owner makes from now on, in this and every later migration.
ALTER DEFAULT PRIVILEGES FOR ROLE orbital_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO orbital_user;
ALTER DEFAULT PRIVILEGES FOR ROLE orbital_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO orbital_user;
ALTER DEFAULT PRIVILEGES FOR ROLE orbital_owner IN SCHEMA public
    GRANT EXECUTE ON FUNCTIONS TO orbital_user;

-- What is there already.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO orbital_user;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO orbital_user;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO orbital_user;
