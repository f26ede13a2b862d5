"""The turns that this process runs or shows to somebody."""
