"""How good an answer is, how sure one may be of it, and what could be had for nothing."""
