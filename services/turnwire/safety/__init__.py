"""The safety service: shields, the providers that run them, and the registry of both."""
