"""From codes to images."""
