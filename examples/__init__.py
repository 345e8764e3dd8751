"""The lessons, one script each; README.md beside this file is the workshop."""
