"""The command `turnwire`."""
