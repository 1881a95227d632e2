"""Clips become one film: chapters, subtitles, titles, cross-fades, sound."""
