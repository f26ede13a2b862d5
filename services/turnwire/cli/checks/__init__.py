"""What `turnwire doctor` looks at: each check is a function that returns a `Finding`."""
