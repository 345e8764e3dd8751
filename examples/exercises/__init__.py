"""Exercises that check themselves: `make check N=1`."""
