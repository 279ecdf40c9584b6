"""`python -m bench`: what Farebox costs beside a bare reverse proxy and two peers, on the same upstream."""
