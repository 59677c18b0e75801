"""Changes that a run makes in any method's data and plan: one file each, found by walking this folder."""
