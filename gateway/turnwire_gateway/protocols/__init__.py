"""The contract over HTTP, method by method out of its descriptors: Connect and gRPC-Web."""
