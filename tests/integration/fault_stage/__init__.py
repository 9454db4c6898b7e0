"""Three nodes in network namespaces of their own, gateways before them, and visitors who note what they see."""
