"""Fast operators beside their reference."""
