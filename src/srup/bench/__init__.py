"""Measurements of a whole installation: real processes, a real broker, and counts that do not depend on each other."""
