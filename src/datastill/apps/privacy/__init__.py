"""What a distilled set tells of the images that it was made from: attacks and searches, never a guarantee."""
