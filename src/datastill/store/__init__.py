"""Files that are whole or absent, and what is built of them: checkpoints and distilled sets."""
