"""One file per kind of match."""
