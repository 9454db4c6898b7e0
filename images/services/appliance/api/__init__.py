"""The public HTTP API of the appliance."""
