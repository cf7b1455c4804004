"""The networks: their registry, their weights, and what makes them fast."""
