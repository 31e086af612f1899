"""The database: an embedded server, the migrator and all SQL."""
