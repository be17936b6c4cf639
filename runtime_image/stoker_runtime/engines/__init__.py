"""What serves requests once a worker has become an instance."""
