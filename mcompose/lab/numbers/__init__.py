"""The family `numbers`: a tiny language model and donors that see numbers in four modalities."""
