"""Clips: one film per key step."""
