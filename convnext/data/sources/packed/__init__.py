"""Sources of datasets packed into few files: shards, archives of class folders, and images in Parquet."""
