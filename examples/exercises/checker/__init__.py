"""How `make check` works. You need not read it to do the exercises."""
