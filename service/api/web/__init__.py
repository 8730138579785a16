"""The web pages: static files, and the routes that send them."""
