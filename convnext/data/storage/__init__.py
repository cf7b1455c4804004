"""Objects in storage that fsspec reaches: `s3://`, `gs://`, `az://`, `sftp://` and others, in place of paths."""
