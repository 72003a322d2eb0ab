"""The shell that acts: it commits what bodies did, then does what they asked for."""
