"""Pages that are made of the contract."""
