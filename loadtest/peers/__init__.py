"""What a user would build instead: two servers of the same images, for comparison."""
