"""A process that is killed, again and again, and what it leaves behind."""
