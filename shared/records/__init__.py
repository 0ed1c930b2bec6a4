"""Where each service keeps its facts: SQLite by default, PostgreSQL by one line of configuration."""
