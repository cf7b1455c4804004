"""Networks made faster for inference."""
