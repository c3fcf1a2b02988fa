"""Faults and fuzz: what guests, tenants, bad luck and other root programs do, and what holds all the same.

Each test does a little of it, so that all of them take minutes in CI. CNV_FAULTS=N does N times as much.
"""
