"""The data path's bench: samples, ratios and tables."""
