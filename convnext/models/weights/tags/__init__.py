"""The published weights of ConvNeXts, as a table."""
