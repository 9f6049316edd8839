"""Rows and files: the SQLite catalog and the folder Graft keeps its state in.

Knows nothing of training or of pages: imports SQLAlchemy, Alembic and the standard library only.
"""
