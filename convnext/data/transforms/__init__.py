"""From an opened image to what the network takes: one file a task."""
