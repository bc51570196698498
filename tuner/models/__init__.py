"""Find, inspect and load base models."""
