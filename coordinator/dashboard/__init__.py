"""What people look at in a browser: pages that the coordinator renders, and what keeps them fresh."""
