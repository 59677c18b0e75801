"""Classes that arrive in steps, remembered as distilled sets (class-incremental learning)."""
