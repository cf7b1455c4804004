"""File formats that Pillow does not read: TIFF of any bands, NumPy arrays, HEIF."""
