"""Videos of drawings, encoded part by part."""
