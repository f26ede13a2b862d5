"""What runs inside a sandbox. Only the standard library and each other may be imported: nothing else of us is there."""
