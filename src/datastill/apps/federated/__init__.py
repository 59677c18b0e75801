"""Training one network on data that stay with several clients: what clients send, and what the server makes of it."""
