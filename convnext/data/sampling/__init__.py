"""Which samples an epoch consists of, and in which order."""
