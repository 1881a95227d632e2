"""Retrieval: plans of skills that resemble the query."""
