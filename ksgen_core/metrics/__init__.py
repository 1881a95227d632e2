"""Measures of key images, clips and plans."""
