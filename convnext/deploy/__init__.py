"""From trained weights to something people use."""
