"""The lessons, one script each. README.md in this folder is the workshop."""
