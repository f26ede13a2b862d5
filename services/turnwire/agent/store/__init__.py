"""What the agent service keeps: statements over one `turnwire.runtime.storage.Transaction`, a module a noun."""
