"""What the safety service keeps: the registrations of shields."""
