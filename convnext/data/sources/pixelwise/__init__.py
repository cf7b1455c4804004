"""Sources of images with mask files."""
