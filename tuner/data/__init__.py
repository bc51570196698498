"""From a file, dataset or pasted text to batches: parse, recognize, split, render, tokenize."""
