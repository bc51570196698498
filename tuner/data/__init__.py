"""Rows: read, divided, rendered, tokenised and batched."""
