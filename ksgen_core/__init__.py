"""Host-independent core of KS-Gen: a picture and a skill become key steps, key images and clips."""

__version__ = "0.1.0"
