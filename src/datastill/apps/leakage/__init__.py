"""What a gradient that somebody shares tells of the image that it was taken at (DLG, iDLG)."""
