"""Carries out what a policy decides; the only room that writes to a model or an optimizer of its own accord."""
