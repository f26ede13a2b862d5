"""What the tool executor service keeps: registrations of tools, the journal, and what is known of artifacts."""
