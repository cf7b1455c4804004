"""Figures and pages: everything here takes plain values and knows nothing of networks."""
