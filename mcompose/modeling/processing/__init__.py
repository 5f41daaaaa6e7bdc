"""The composed processor: one tokenizer, and each source's own processor for its media."""
