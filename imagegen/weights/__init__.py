"""A model's weight files: where they are, how they are downloaded, which parts are read. Knows nothing of torch."""
