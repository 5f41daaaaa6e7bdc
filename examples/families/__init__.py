"""Every family of transformers on a tiny checkpoint: composed, reloaded and compared with its own class."""
