"""Sources: the classes that read datasets, one file per format; `open.py` has the table of formats."""
