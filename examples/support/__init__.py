"""Code that every script uses, and that you need not read: arguments, settings, --trace."""
