"""Where records live: one contract, and the stores behind it."""
