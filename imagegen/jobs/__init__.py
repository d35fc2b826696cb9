"""Jobs that outlive their connection: kept in a store, run in turn, told by events and webhooks."""
