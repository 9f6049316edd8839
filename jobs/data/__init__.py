"""From an uploaded file to checked rows: read, detect, map columns, preflight. Nothing is dropped silently."""
