"""Networks that learn from images without labels, as autoencoders over a backbone."""
