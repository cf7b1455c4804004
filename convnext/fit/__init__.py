"""Small data: frozen features, a head chosen by cross-validation, and what both tell of predictions and data."""
