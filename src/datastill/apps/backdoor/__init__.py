"""Triggers that are distilled into a set, and a check of sets that others made."""
