"""The report `chimera`: domain experts and masking on the family `pictures`."""
