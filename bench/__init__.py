"""What a turn costs, measured against a bare relay of the same tokens. `python -m bench.turn`."""
