"""What upstreams bill, compared day by day with what was metered."""
