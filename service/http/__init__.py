"""What is sent and received: routes, schemas, keys, quotas, and how a connection may behave."""
