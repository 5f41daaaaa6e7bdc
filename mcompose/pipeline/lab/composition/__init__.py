"""The report `composition`: ways to compose four donors, searched and not."""
