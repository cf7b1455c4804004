"""From an opened image to the input of a network: one file per task."""
