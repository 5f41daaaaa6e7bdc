"""The reports `sphinx` and `smola`: mixed encoders, views, weights and low-rank experts on the family `pictures`."""
