"""mergekit's published numerics tests, run against mcompose's merge functions. Start with `__main__`."""
