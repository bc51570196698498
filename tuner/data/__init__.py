"""From a file, dataset or pasted text to batches: parse, recognise, split, render, tokenise."""
