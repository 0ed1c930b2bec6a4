from tests.stores import database_url, postgresql_stores, sqlite_stores, stores

__all__ = ["database_url", "postgresql_stores", "sqlite_stores", "stores"]
