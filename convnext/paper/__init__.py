"""The paper: its roadmap, its tables, its figures, and the timing beside them."""
