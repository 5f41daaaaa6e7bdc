"""Benchmarks: two things side by side in one run, ratio and spread printed."""
