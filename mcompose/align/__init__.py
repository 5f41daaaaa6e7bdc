"""Short fine-tunes that a composition still needs; nothing is built here yet."""
