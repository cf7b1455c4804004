"""Archives of images: zip and tar files, read at random without being unpacked."""
