"""The composed network: its forward pass, generation, placement of features, and head."""
