"""What every service shares: hosting, channels, identity, settings, storage, telemetry. It imports no service."""
