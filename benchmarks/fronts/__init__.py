"""What ours is compared with: the same work as a person writes it by hand, without adapter."""
