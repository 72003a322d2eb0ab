"""The parts of ``onboarding.py`` that have nothing to do with durable execution."""
