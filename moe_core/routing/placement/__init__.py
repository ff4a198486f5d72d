"""Which GPU holds which expert: the published balancer, and the files that engines read."""
