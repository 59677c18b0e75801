"""What is done with distilled sets, or by distilling: a room for each application."""
