"""Domain experts of a composed output: their encoders, projectors and routers, from recipe and headers."""
