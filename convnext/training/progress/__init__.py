"""What a user sees of a run, on a terminal, in a notebook or as plain lines, and the signals that stop it."""
