"""An engine inside a web service: one module for each framework."""
