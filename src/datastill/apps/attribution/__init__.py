"""What in an image a network decides by, against a distilled image of the image's own family (integrated gradients)."""
