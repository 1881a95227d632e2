"""Key-step images: the first picture of every step."""
