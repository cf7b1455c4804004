"""Tables that name images and their labels: CSV and Parquet."""
