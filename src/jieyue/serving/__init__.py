"""Models over HTTP: OpenAI's protocol, small web pages, bounded and closed to strangers. Needs ``jieyue[serve]``."""
