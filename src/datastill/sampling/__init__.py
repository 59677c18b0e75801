"""Which real samples a step sees, and where synthetic images start."""
