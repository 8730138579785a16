"""What people's labels become: which image to show next, trained rewards, certificates."""
