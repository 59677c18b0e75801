"""Where the networks come from on which a match is made."""
