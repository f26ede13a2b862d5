"""The process that holds the shards of Qdrant's embedded engine; nothing here may bring gRPC along."""
