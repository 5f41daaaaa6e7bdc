"""The family ``pictures``: charts, tables, formulas and pages drawn from real numbers, with small frozen experts.

A general encoder sees a picture at 32 pixels, where nothing written can be read; an expert sees all of it.
"""
