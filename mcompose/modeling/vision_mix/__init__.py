"""Several image encoders on several views of a picture, as one tower."""
