"""From what a caller asks for to an artifact: a settled job, its overrides, its budget, its run."""
