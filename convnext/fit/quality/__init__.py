"""What frozen features show about the data: wrong labels, duplicates, outliers, torn images, and what more images would bring."""
