"""The Python parts of the scripts, some of which the tests use as well."""
