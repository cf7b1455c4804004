"""Weight files: found, read, recognised, converted and written."""
