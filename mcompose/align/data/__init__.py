"""Samples of a stage: records and media in order, batched, labelled and masked."""
