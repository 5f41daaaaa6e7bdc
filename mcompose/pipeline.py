"""The steps of a run, in order: what the command line calls and what a script may call."""
