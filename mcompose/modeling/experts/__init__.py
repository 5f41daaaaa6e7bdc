"""Domain experts (Chimera): encoders beside the general one, their projectors and routers, and hidden tokens."""
