"""The run folder: what a run writes, who holds it, and where it was made."""
