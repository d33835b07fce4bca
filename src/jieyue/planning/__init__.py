"""What training will cost, before any weight is allocated, and the settings that fit what was allowed."""
