"""Export networks, verify the files, and open them again as networks."""
