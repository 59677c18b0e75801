"""Sections of the report and the card: one file each, found by walking this folder."""
