"""What frozen features tell of the data: wrong labels, duplicates, outliers, torn images, and what more images would bring."""
