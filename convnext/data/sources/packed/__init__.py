"""Sources of datasets in one file: archives of class folders, and images in Parquet."""
