"""Numbers: accuracy and the like, and what a network costs."""
