"""Kinds of upstreams: how each is spoken to. A call is put in the words of the Messages API, and answered in them."""
