"""What every script needs and no learner has to open: arguments, settings, the console, --trace."""
