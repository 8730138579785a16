"""What a service does when it is killed, flooded, held up, stopped, and used for long."""
