"""The store: PostgreSQL. SQL lives in `sql/`, one small module a subject turns its rows into typed values."""
