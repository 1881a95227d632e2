"""Tabletop: a procedural world of table-top skills, for training the embedded models, for tests and for the benchmark.

Drawing needs skia-python (a development extra); running the pack never does.
"""
