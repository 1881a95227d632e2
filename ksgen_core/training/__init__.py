"""Makes the embedded models from nothing: only the command line imports this room."""
