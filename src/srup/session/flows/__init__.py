"""Every kind of exchange, each in a file of its own; a role is a tuple of these."""
