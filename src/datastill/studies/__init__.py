"""Studies: many cells of one question, each cell a file, resumable."""
