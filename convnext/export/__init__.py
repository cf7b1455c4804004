"""Exported files: written, verified, and opened again as networks."""
