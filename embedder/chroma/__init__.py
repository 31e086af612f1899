"""The move from Chroma: backup, migrate, verify, rollback (`python -m embedder.chroma`)."""
