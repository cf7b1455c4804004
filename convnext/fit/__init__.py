"""Small data: frozen features, a head chosen by cross-validation, and what both show about predictions and data."""
